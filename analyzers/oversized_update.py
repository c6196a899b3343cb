"""SK102 oversized-update.

What it reports:    An update more than half the size of the weights it changes.
Why it matters:     Such a step does not refine a matrix, it replaces it. What the initialisation or the training so far
                    had made of it is gone, and the layers behind it were fitted to what it was.
How it decides:     Update norm over weight norm before the step, per matrix, above 0.5, at any step. Matrices that start
                    at (almost) zero, biases and norm scales are left out: relative to nothing every update is large.
                    LBFGS is not judged: it takes its step lengths from curvature, not from a rate.
Known false alarms: A matrix that is meant to be overwritten, such as a re-initialised head.
What to try:        A peak rate at which the update is 5 % of the weights: the rate divided by ratio / 0.05.
References:         You et al. 2017, arXiv 1708.03888 (the ratio); Kosson et al. 2024, arXiv 2305.17212 (in balance it is
                    about sqrt(2 lr wd), a percent). 0.5 lies between what small language models survived (0.05) and did
                    not (1.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from stabkit.analyzers.base import NoOccasion, Rule, Thresholds, found
from stabkit.analyzers.rates import rate_at
from stabkit.analyzers.series import episodes, lasts
from stabkit.analyzers.start import SAFE_RATIO, EarlyUpdates, early_updates
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "OversizedUpdate", "OversizedUpdateThresholds"]

RULE = Rule(
    code="SK102",
    name="oversized-update",
    severity=Severity.WARNING,
    requires=(("update_ratio", "tensor"),),
)


@dataclass(frozen=True, kw_only=True)
class OversizedUpdateThresholds(Thresholds):
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

    def sweeps(self) -> tuple[type[EarlyUpdates]]:
        """What it reads of the tensors."""
        return (EarlyUpdates,)

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding per episode."""
        if run.stream.optimizer == "LBFGS":
            raise NoOccasion("LBFGS takes the length of its steps from curvature, not from a rate")
        limits = self.thresholds
        updates = early_updates(run)
        steps = updates.steps
        for first, last in episodes(updates.largest > limits.ratio, limits.gap, steps):
            ratio, step = float(updates.largest[first]), int(steps[first])
            tensors, lr = updates.order(first, limits.ratio), rate_at(run, step)
            yield found(
                RULE,
                message=f"step {step} changed {tensors[0]} by {ratio:.2g} times its own size",
                first_step=step,
                last_step=int(steps[last]),
                last_good_step=step - 1,
                state=State.ONGOING if lasts(last, len(steps)) else State.RECOVERED,
                tensors=tensors,
                evidence=(
                    Evidence(metric="update_ratio", observed=ratio, expected=limits.ratio, step=step, tensor=tensors[0]),
                    Evidence(metric="lr", observed=lr, step=step),
                ),
                advice=_advice(lr, ratio, step),
                remedy={"peak_lr": lr * SAFE_RATIO / ratio} if math.isfinite(lr) and lr > 0 else {},
            )


def _advice(lr: float, ratio: float, step: int) -> str:
    known = math.isfinite(lr)
    change = f"from {lr:.3g} to {lr * SAFE_RATIO / ratio:.2g}" if known else f"by a factor of {ratio / SAFE_RATIO:.2g}"
    return f"Lower the rate at step {step} {change}: there the update would be 5 % of the weights."
