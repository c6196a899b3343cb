"""SK102 oversized-update.

What it reports:    An update more than half the size of the weights it changes.
Why it matters:     Such a step does not refine a matrix, it replaces it. What the initialisation or the training so far had made
                    of it is gone, and the layers behind it were fitted to what it was.
How it decides:     Update norm over weight norm before the step, per matrix, above 0.5, at any step. Matrices that start at
                    (almost) zero, biases and norm scales are left out: relative to nothing every update is large.
Known false alarms: A matrix that is meant to be overwritten, such as a re-initialised head.
What to try:        A peak rate at which the update is 5 % of the weights: the rate divided by ratio / 0.05.
References:         You et al. 2017, arXiv 1708.03888 (the ratio); Kosson et al. 2024, arXiv 2305.17212 (in balance it is about
                    sqrt(2 lr wd), a percent). 0.5 lies between what small language models survived (0.05) and did not (1.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, found
from stabkit.analyzers.series import episodes, lasts
from stabkit.analyzers.start import SAFE_RATIO, early_updates
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "OversizedUpdate", "OversizedUpdateThresholds"]

RULE = Rule(
    code="SK102",
    name="oversized-update",
    severity=Severity.WARNING,
    requires=(("lr", "group"), ("update_ratio", "tensor")),
)


@dataclass(frozen=True, kw_only=True)
class OversizedUpdateThresholds:
    """When an update counts as too large."""

    ratio: float = 0.5
    """Update norm over weight norm."""
    gap: int = 30
    """Steps between two such updates up to which they are one finding."""


class OversizedUpdate:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: OversizedUpdateThresholds | None = None) -> None:
        self.thresholds = thresholds or OversizedUpdateThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding per episode."""
        limits = self.thresholds
        updates = early_updates(run)
        steps = updates.table.steps
        rates = dict(zip(run.steps.tolist(), np.nanmax(run.table("lr").values, axis=1).tolist(), strict=True))
        with np.errstate(invalid="ignore"):
            above = (updates.largest > limits.ratio) & (steps >= 1)
        for first, last in episodes(above, limits.gap):
            ratio, step = float(updates.largest[first]), int(steps[first])
            culprit = updates.culprit(first)
            yield found(
                RULE,
                message=f"step {step} changed {culprit} by {ratio:.2g} times its own size",
                first_step=step,
                last_step=int(steps[last]),
                last_good_step=step - 1,
                state=State.ONGOING if lasts(last, len(steps)) else State.RECOVERED,
                tensors=updates.order(first, limits.ratio),
                evidence=(
                    Evidence(metric="update_ratio", observed=ratio, expected=limits.ratio, step=step, tensor=culprit),
                    Evidence(metric="lr", observed=rates.get(step, np.nan), step=step),
                ),
                advice=_advice(rates.get(step, np.nan), ratio, step),
            )


def _advice(lr: float, ratio: float, step: int) -> str:
    safe = f"{lr * SAFE_RATIO / ratio:.2g}" if np.isfinite(lr) else "a tenth of the rate or less"
    return f"Lower the rate at step {step} from {lr:.3g} to {safe}: there the update would be 5 % of the weights."
