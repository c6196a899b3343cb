"""SK101 missing-warmup.

What it reports:    Adam starts at its full rate, and its first updates are a large part of the weights they change.
Why it matters:     Adam's first step is a sign step: every weight moves by the learning rate, however small its gradient.
                    At the peak rate that can replace the initialisation, and the second moment that should restrain later
                    steps rests on a handful of gradients. Such runs blow up, or settle at a worse loss.
How it decides:     In the first 10 steps the rate has not risen (within 5 % of the first step's), and the
                    update-to-weight ratio of a matrix passes 0.1. At the first step that ratio is lr / RMS(W) exactly.
                    Information up to 0.5, a warning above, an error once the loss within 50 steps passes 1.5 times its
                    first value or is no longer finite. The configuration alone is no evidence: a small rate needs no
                    warmup. Matrices that start at zero are left out.
Known false alarms: A ratio between 0.1 and 0.5 often does no lasting harm: hence information only.
What to try:        A linear warmup of 2 / (1 - beta2) steps. Where that is more than a tenth of the run: a warmup of a
                    tenth with the peak rate at which the first update is 10 % of the weights, or a smaller beta2.
References:         Ma and Yarats 2019, arXiv 1910.04209 (length); Liu et al. 2019, arXiv 1908.03265 (variance of the
                    second moment); Kosson et al. 2024, arXiv 2410.23922 (angular updates). The limits 0.1 and 0.5 lie
                    between ratios seen to be harmless (0.05) and to break small language models (1.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.level import broken_losses
from stabkit.analyzers.rates import highest_rates
from stabkit.analyzers.series import known_max
from stabkit.analyzers.start import QUIET_RATIO, EarlyUpdates, early_updates, planned_steps, warmup_for
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "MissingWarmup", "MissingWarmupThresholds"]

RULE = Rule(
    code="SK101",
    name="missing-warmup",
    severity=Severity.WARNING,
    requires=(("lr", "group"), ("beta2", "group"), ("update_ratio", "tensor")),
    min_steps=2,
)


@dataclass(frozen=True, kw_only=True)
class MissingWarmupThresholds(Thresholds):
    """When a start counts as too fast."""

    early: int = 10
    """Steps looked at; a warmup shows in fewer."""
    ratio: float = QUIET_RATIO
    """Update-to-weight ratio from which it is worth saying."""
    harmful_ratio: float = 0.5
    """Ratio from which it is a warning."""
    rise: float = 1.05
    """A rate that has risen by this factor since the first step is in a warmup."""
    harm_within: int = 50
    """Steps within which harm is put down to the start."""
    harm: float = 1.5
    """The loss over its first value from which it is harm."""


class MissingWarmup:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: MissingWarmupThresholds | None = None) -> None:
        self.thresholds = thresholds or MissingWarmupThresholds()

    def sweeps(self) -> tuple[type[EarlyUpdates]]:
        """What it reads of the tensors."""
        return (EarlyUpdates,)

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding."""
        limits = self.thresholds
        if run.steps[0] > 1:
            raise NotApplicable(f"the log begins at step {run.steps[0]}")
        lr, beta2 = highest_rates(run), known_max(run.table("beta2").values, axis=1)
        if not 0 <= beta2[0] < 1:
            raise NotApplicable("beta2 of the first step is not known")
        steady = (lr <= lr[0] * limits.rise) & (lr >= lr[0] / limits.rise) & (lr > 0)
        updates = early_updates(run)
        for i in range(1, int(np.searchsorted(run.steps, limits.early, "right"))):
            if not steady[: i + 1].all():
                return
            seen = updates.largest[updates.steps <= run.steps[i]]
            if known_max(seen) > limits.ratio:
                yield self._finding(run, int(run.steps[i]), int(np.nanargmax(seen)), updates, float(lr[0]), float(beta2[0]))
                return

    def _finding(self, run: RunLog, step: int, row: int, updates: EarlyUpdates, lr: float, beta2: float) -> Finding:
        limits = self.thresholds
        ratio, at = float(updates.largest[row]), int(updates.steps[row])
        tensors = updates.order(row, limits.ratio)
        # Of later steps only the harm is known here: it makes the finding worse, never new.
        harmed = _harm(run, limits.harm_within, limits.harm)
        severity = Severity.ERROR if harmed else Severity.WARNING if ratio > limits.harmful_ratio else Severity.INFO
        evidence = [
            Evidence(metric="update_ratio", observed=ratio, expected=limits.ratio, step=at, tensor=tensors[0], note="limit"),
            Evidence(metric="lr", observed=lr, step=1, note="already the rate of the first step"),
        ]  # fmt: skip
        if harmed:
            event, loss, first = harmed
            evidence.append(Evidence(metric="loss", observed=loss, expected=first, step=event, note="against the first loss"))
        return found(
            RULE,
            severity=severity,
            message=f"no warmup: step {at} at rate {lr:.3g} changed {tensors[0]} by {ratio:.2g} times its own size",
            first_step=step,
            last_step=min(int(run.steps[-1]), limits.early),
            event_step=harmed[0] if harmed else None,
            last_good_step=0,
            state=State.ONGOING if run.steps[-1] <= limits.early else State.RECOVERED,
            tensors=tensors,
            evidence=tuple(evidence),
            advice=_advice(planned_steps(run), beta2, lr, ratio),
            remedy=_remedy(planned_steps(run), beta2, lr, ratio),
        )


def _advice(planned: int | None, beta2: float, lr: float, ratio: float) -> str:
    warmup = warmup_for(beta2, lr, ratio, planned)
    if warmup.steps == warmup.full:
        where = "that is more than a tenth of the run" if planned is None else "it must be shorter"
        return (
            f"Start again with a linear warmup of {warmup.full} steps (2 / (1 - beta2) at beta2 {beta2:g}). "
            f"If {where}, lower the peak rate to {warmup.lr:.2g}."
        )
    shorter = f", or beta2 {warmup.beta2:.3g}, whose full warmup that is" if warmup.beta2 else ""
    return (
        f"Start again with a linear warmup of {warmup.steps} steps and a peak rate of {warmup.lr:.2g}. The full warmup for "
        f"beta2 {beta2:g} would be {warmup.full} steps, more than a tenth of these {planned}; to keep the rate {lr:.3g}, use "
        f"it in a longer run{shorter}."
    )


def _remedy(planned: int | None, beta2: float, lr: float, ratio: float) -> dict[str, float]:
    warmup = warmup_for(beta2, lr, ratio, planned)
    return {"warmup_steps": warmup.steps} | ({} if warmup.steps == warmup.full else {"peak_lr": warmup.lr})


def _harm(run: RunLog, within: int, factor: float) -> tuple[int, float, float | None] | None:
    """(step, loss, first loss) of the worst loss near the start, where it is far above the first one or not finite."""
    if not run.has("loss"):
        return None
    steps = run.steps[run.steps <= within]
    losses, broken = run.series("loss").values[: len(steps)], np.flatnonzero(broken_losses(run)[: len(steps)])
    finite = np.flatnonzero(np.isfinite(losses))
    first = float(losses[finite[0]]) if len(finite) else None
    if len(broken):
        return int(steps[broken[0]]), float(losses[broken[0]]), first
    if first is None or first <= 0:
        return None
    worst = int(finite[np.argmax(losses[finite])])
    return (int(steps[worst]), float(losses[worst]), first) if losses[worst] > factor * first else None
