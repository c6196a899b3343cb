"""SK409 scheduler-before-optimizer.

What it reports:    `scheduler.step()` is called before `optimizer.step()`, so that the schedule's first value is never used.
Why it matters:     A scheduler of torch sets its first rate when it is made. Stepped before the optimizer it overwrites that
                    rate unused, and the whole schedule runs one call early. Where the scheduler is stepped once an epoch,
                    the rate of a whole epoch is lost.
How it decides:     In a run that begins at step 1, a fresh scheduler was stepped before the first optimizer step, that moved
                    the rate from one that was not 0, and it was stepped as often again before two later steps.
Known false alarms: One call before the loop, on purpose, to leave out a first rate that is not 0. Left alone are: a first rate
                    of 0 (leaving it out does no harm), several calls before the loop (a schedule brought forward),
                    ReduceLROnPlateau (it has no first value), schedulers written by hand (they are not seen).
What to try:        optimizer.step() first, then scheduler.step().
References:         PyTorch documentation, torch.optim, "How to adjust learning rate": since 1.1.0, a scheduler that is called
                    before the optimizer "will skip the first value of the learning rate schedule".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NoOccasion, NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.schedules import STEPPED, calls_of, first_scheduler, kinds_of
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "SchedulerBeforeOptimizer", "SchedulerBeforeOptimizerThresholds"]

RULE = Rule(code="SK409", name="scheduler-before-optimizer", severity=Severity.WARNING, requires=STEPPED, min_steps=3)


@dataclass(frozen=True, kw_only=True)
class SchedulerBeforeOptimizerThresholds(Thresholds):
    """When an order counts as the loop's own."""

    calls: int = 3
    """Optimizer steps with calls before them, the first included: a single call can be on purpose, a habit is not."""


class SchedulerBeforeOptimizer:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: SchedulerBeforeOptimizerThresholds | None = None) -> None:
        self.thresholds = thresholds or SchedulerBeforeOptimizerThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding."""
        if run.steps[0] != 1:
            raise NotApplicable(f"the log begins at step {run.steps[0]}: the schedule's first value was used before, or not")
        scheduler, calls = first_scheduler(run), calls_of(run)
        if "ReduceLROnPlateau" in kinds_of(run):
            raise NoOccasion("ReduceLROnPlateau has no first value that could be skipped")
        skipped, used = scheduler.get("rate"), float(run.table("lr").values[0, 0])
        fresh = scheduler.get("step") == 0 and scheduler.get("last_epoch") == 0
        if not (fresh and isinstance(skipped, (int, float)) and skipped > 0 and abs(used - skipped) > 0):
            return
        rows = np.flatnonzero(calls.all)[: self.thresholds.calls]
        steady = len(rows) == self.thresholds.calls and rows[0] == 0 and len(set(calls.all[rows].tolist())) == 1
        if not steady or calls.between[rows].any():
            return
        late = bool(calls.after[0])
        yield found(
            RULE,
            message=f"the scheduler steps before the optimizer: step 1 ran at {used:.3g}, and the schedule's first rate "
            f"{skipped:.3g} was never used",
            first_step=int(run.steps[rows[-1]]),
            last_step=int(run.steps[-1]),
            event_step=1,
            last_good_step=0,
            evidence=(
                Evidence(metric="lr", observed=used, expected=float(skipped), step=1, note="the rate before the call"),
                Evidence(
                    metric="scheduler_steps_after_backward" if late else "scheduler_steps_before_backward",
                    observed=float(calls.all[0]), expected=0.0, step=1,
                ),
            ),
            advice=f"Move scheduler.step() below optimizer.step(){'' if late else ', from the top of the loop'}: "
            f"step 1 then runs at {skipped:.3g}.",
        )  # fmt: skip
