"""SK410 scheduler-never-stepped.

What it reports:    A scheduler was made for the optimizer, and nobody ever stepped it.
Why it matters:     Making a scheduler sets its first rate and nothing more. Without `scheduler.step()` the whole run trains at
                    that rate: that of the first step of a warmup, or the peak without any decay.
How it decides:     When the run has ended by itself: torch's mark of a scheduler is on the optimizer, no scheduler of this
                    optimizer was seen stepping, and the rate was the same at every step.
Known false alarms: A trial run that stops inside the first epoch of a schedule that is stepped once an epoch: give
                    `stabkit.watch` the `total_steps` of the whole run and it is left alone. A `with` that ends before
                    `scheduler.step()` is called. A run that was broken off by an exception, or still goes on, is not judged.
What to try:        Call scheduler.step() after optimizer.step(), or once an epoch where the schedule counts epochs.
References:         PyTorch documentation, torch.optim, "How to adjust learning rate".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stabkit.analyzers.base import NoOccasion, NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.schedules import STEPPED, calls_of, noted
from stabkit.analyzers.start import planned_steps
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "SchedulerNeverStepped", "SchedulerNeverSteppedThresholds"]

RULE = Rule(code="SK410", name="scheduler-never-stepped", severity=Severity.WARNING, requires=STEPPED)


@dataclass(frozen=True, kw_only=True)
class SchedulerNeverSteppedThresholds(Thresholds):
    """What is a run."""

    steps: int = 20
    """Fewer steps are a trial of the loop, not a training."""


class SchedulerNeverStepped:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: SchedulerNeverSteppedThresholds | None = None) -> None:
        self.thresholds = thresholds or SchedulerNeverSteppedThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding, at the last step."""
        if not noted(run, "scheduled"):
            raise NoOccasion("the optimizer has no scheduler of torch; one written by hand is not seen")
        rates = run.table("lr").values
        if calls_of(run).all.any() or noted(run, "scheduler") or (rates != rates[0]).any():
            return
        last = int(run.steps[-1])
        if len(run.steps) < self.thresholds.steps or not _ended(run):
            raise NotApplicable(f"no scheduler step in {len(run.steps)} steps, but the run has not ended by itself")
        if last < (planned_steps(run) or 0):
            raise NotApplicable(f"no scheduler step up to step {last}, but {planned_steps(run)} steps were planned")
        rate = float(rates[0, 0])
        yield found(
            RULE,
            message=f"the scheduler was never stepped: the rate stayed {rate:.3g} up to the last step, {last}",
            first_step=last,
            last_step=last,
            event_step=int(run.steps[0]),
            last_good_step=int(run.steps[0]) - 1,
            evidence=(
                Evidence(metric="lr", observed=rate, step=last, note="the same at every step"),
                Evidence(metric="scheduler_steps_before_backward", observed=0.0, step=last, note="and none later in a step"),
            ),
            advice=f"Call scheduler.step() after optimizer.step() (once an epoch where the schedule counts epochs), or remove "
            f"the scheduler if a constant {rate:.3g} is meant.",
        )  # fmt: skip


def _ended(run: RunLog) -> bool:
    """Whether the loop came to its own end; a later process that recorded into the same attempt counts too."""
    ends = [event for event in run.events if event.get("event") == "close"]
    return bool(ends) and ends[-1].get("error") is None
