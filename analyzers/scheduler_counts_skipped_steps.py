"""SK412 scheduler-counts-skipped-steps.

What it reports:    The schedule moves on for steps that the GradScaler skipped.
Why it matters:     A skipped step changes no weight. A schedule that counts it is ahead of the optimizer: of a short warmup,
                    the scaler's first search for its scale (about ten skipped steps from 65536) can use up a good part.
                    PyTorch then also warns that the scheduler was stepped before the optimizer.
How it decides:     The scheduler is stepped with almost every step, and before the step after a skipped one it was stepped too
                    and the rate has moved.
Known false alarms: None known. A schedule that was meant to count batches rather than steps loses next to nothing by it.
What to try:        Step the scheduler only if the scaler has not lowered its scale.
References:         PyTorch documentation, torch.amp.GradScaler.step: `optimizer.step` is not called where gradients hold
                    inf or NaN. Accelerate's AcceleratedScheduler leaves out the steps that were skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NoOccasion, Rule, Thresholds, found
from stabkit.analyzers.schedules import STEPPED, calls_of, first_scheduler
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "SchedulerCountsSkippedSteps", "SchedulerCountsSkippedStepsThresholds"]

RULE = Rule(
    code="SK412",
    name="scheduler-counts-skipped-steps",
    severity=Severity.INFO,
    requires=(*STEPPED, ("skipped", "step")),
    min_steps=4,
)


@dataclass(frozen=True, kw_only=True)
class SchedulerCountsSkippedStepsThresholds(Thresholds):
    """When a scheduler is one that counts steps."""

    share: float = 0.9
    """Share of the steps so far before which it was stepped: a schedule of epochs may move at a skipped step by chance."""


class SchedulerCountsSkippedSteps:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: SchedulerCountsSkippedStepsThresholds | None = None) -> None:
        self.thresholds = thresholds or SchedulerCountsSkippedStepsThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding, at the first such step."""
        skipped, rates = run.series("skipped").values == 1, run.table("lr").values
        if not skipped.any():
            raise NoOccasion("no step was skipped")
        first_scheduler(run)
        stepped = calls_of(run).all > 0
        stepped[0] = True  # before the first step none is due
        steady = np.cumsum(stepped) >= self.thresholds.share * np.arange(1, len(stepped) + 1)
        moved = stepped[1:] & steady[1:] & (rates[1:] != rates[:-1]).any(axis=1) & (np.diff(run.steps) == 1)
        rows = 1 + np.flatnonzero(skipped[:-1] & moved)
        rows = rows[rows >= RULE.min_steps - 1]
        if not len(rows):
            return
        row, count = int(rows[0]), len(rows)
        step = int(run.steps[row])
        yield found(
            RULE,
            message=f"step {step - 1} was skipped, but the schedule went on to {rates[row, 0]:.3g}",
            first_step=step,
            last_step=int(run.steps[rows[-1]]),
            state=State.RECOVERED,
            evidence=(
                Evidence(metric="lr", observed=float(rates[row, 0]), expected=float(rates[row - 1, 0]), step=step),
                Evidence(metric="skipped", observed=float(count), note="skipped steps that the schedule counted"),
            ),
            advice="Step the scheduler only where the scaler stepped: scale = scaler.get_scale(); scaler.step(optimizer); "
            "scaler.update(); then, if scaler.get_scale() >= scale, scheduler.step(). "
            f"So far the schedule is {count} step{'s' if count > 1 else ''} ahead.",
        )  # fmt: skip
