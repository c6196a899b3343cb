"""SK413 scheduler-steps-per-micro-batch.

What it reports:    With gradient accumulation, the scheduler is stepped with every micro-batch instead of every optimizer step.
Why it matters:     A schedule that was given the number of optimizer steps runs out that many times too early: warmup is too
                    short, and the rate reaches its end while most of the training is still to come.
How it decides:     In several optimizer steps in a row, each of more than one backward call, the scheduler was stepped between
                    the backward calls.
Known false alarms: A schedule whose length was deliberately given in micro-batches.
What to try:        Step the scheduler where the optimizer is stepped, inside the same `if`.
References:         Hugging Face Accelerate, "Performing gradient accumulation": the scheduler is stepped with the optimizer,
                    once per accumulation. PyTorch documentation, "Gradient accumulation" in the AMP examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NoOccasion, Rule, Thresholds, found
from stabkit.analyzers.schedules import STEPPED, calls_of, first_scheduler
from stabkit.analyzers.series import episodes
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "SchedulerStepsPerMicroBatch", "SchedulerStepsPerMicroBatchThresholds"]

RULE = Rule(
    code="SK413",
    name="scheduler-steps-per-micro-batch",
    severity=Severity.WARNING,
    requires=(*STEPPED, ("backward_count", "step")),
    min_steps=3,
)


@dataclass(frozen=True, kw_only=True)
class SchedulerStepsPerMicroBatchThresholds(Thresholds):
    """When it is a habit."""

    steps: int = 3
    """Optimizer steps in a row: the end of an epoch may fall between two micro-batches once, not three times in a row."""


class SchedulerStepsPerMicroBatch:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: SchedulerStepsPerMicroBatchThresholds | None = None) -> None:
        self.thresholds = thresholds or SchedulerStepsPerMicroBatchThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding."""
        backwards, calls = run.series("backward_count").values, calls_of(run)
        first_scheduler(run)
        if not (backwards > 1).any():
            raise NoOccasion("every step has one backward call")
        inside = (backwards > 1) & (calls.between > 0)
        habits = [e for e in episodes(inside, steps=run.steps) if e[1] - e[0] + 1 >= self.thresholds.steps]
        if not habits:
            return
        begin, row, last = habits[0][0], habits[0][0] + self.thresholds.steps - 1, habits[-1][1]
        step, times = int(run.steps[row]), round(float(np.median(calls.all[begin + 1 : row + 1])))
        yield found(
            RULE,
            message=f"the scheduler moves {times} times for every optimizer step, with each micro-batch, from step "
            f"{run.steps[begin]} on",
            first_step=step,
            last_step=int(run.steps[last]),
            event_step=int(run.steps[begin]),
            last_good_step=int(run.steps[begin]) - 1,
            state=State.ONGOING if last == len(inside) - 1 else State.RECOVERED,
            evidence=(
                Evidence(
                    metric="scheduler_steps_between_backwards", observed=float(calls.between[row]), expected=0.0, step=step
                ),
                Evidence(metric="backward_count", observed=float(backwards[row]), step=step),
            ),
            advice="Put scheduler.step() next to optimizer.step(), inside the `if` that ends an accumulation; as it is, the "
            f"schedule is over after 1/{times} of the steps it was made for.",
        )  # fmt: skip
