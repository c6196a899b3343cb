"""SK415 schedule-restarts-on-resume.

What it reports:    A run was resumed with its optimizer's state, but its schedule began again at the first step.
Why it matters:     The scheduler has a state of its own. Where only model and optimizer are loaded, the resumed run warms up
                    again, reaches the peak rate a second time, and never comes to the end of its decay.
How it decides:     The optimizer was resumed at a count above 0, and either the rates of the steps after the first are exactly
                    those of steps 2, 3, 4, ... of the same log; or a scheduler that is stepped with every optimizer step
                    was then still at its own step 0, and the rates are those of the beginning times a factor (several of
                    torch's schedules go on from the rate they find) or the log begins with the resume.
Known false alarms: A second warmup on purpose, with the optimizer's moments kept: it cannot be told from a mistake. A cycle
                    whose first restart falls exactly on the resume, where the schedule is written by hand. Left alone are
                    constant rates, schedules of epochs in a log that begins with the resume, schedulers that did load a state.
What to try:        Save and load scheduler.state_dict() with the optimizer's; by hand, count from the step that was loaded.
References:         PyTorch documentation, "Saving and loading a general checkpoint"; torch.optim.lr_scheduler: `state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stabkit.analyzers.base import NoOccasion, Rule, Thresholds, found
from stabkit.analyzers.schedules import STEPPED, calls_of
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "ScheduleRestartsOnResume", "ScheduleRestartsOnResumeThresholds"]

RULE = Rule(code="SK415", name="schedule-restarts-on-resume", severity=Severity.WARNING, requires=STEPPED, min_steps=6)

SAME = 1e-9
"""Relative difference of rates that are the same: what rounding leaves of two ways to compute them."""


@dataclass(frozen=True, kw_only=True)
class ScheduleRestartsOnResumeThresholds(Thresholds):
    """What is a repetition."""

    steps: int = 5
    """Rates taken again one by one; as many calls of a fresh scheduler."""
    count: int = 10
    """Steps the optimizer had counted: below this the schedule had hardly begun."""


class ScheduleRestartsOnResume:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: ScheduleRestartsOnResumeThresholds | None = None) -> None:
        self.thresholds = thresholds or ScheduleRestartsOnResumeThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding: the first resume that lost the schedule."""
        resumes = [i for i, event in enumerate(run.events) if _is_resume(event, run)]
        if not resumes:
            raise NoOccasion("the run was not resumed")
        rates = run.table("lr").values[:, 0]
        for place in resumes:
            begin, count = int(run.events[place]["first_step"]), int(run.events[place]["count"])
            row = int(np.searchsorted(run.steps, begin))
            fired = row + self.thresholds.steps
            if count < self.thresholds.count or fired >= len(run.steps) or run.steps[row] != begin:
                continue
            scheduler = _scheduler_of_its_process(run, place)
            if self._restarted(run, row, scheduler):
                now, expected = float(rates[row + 1]), float(rates[row - 1]) if row else None
                yield found(
                    RULE,
                    message=f"resumed at step {begin}, but the schedule began anew: "
                    + (f"{now:.3g} after {expected:.3g}" if row else f"{now:.3g}, then {rates[fired]:.3g}"),
                    first_step=int(run.steps[fired]),
                    last_step=int(run.steps[-1]),
                    event_step=begin,
                    last_good_step=begin - 1,
                    evidence=(
                        Evidence(metric="lr", observed=now, expected=expected, step=begin + 1, note="before the resume"),
                        Evidence(metric="applied_steps", observed=float(count), step=begin, note="as the optimizer counts"),
                    ),
                    advice="Save and load the scheduler with the optimizer: scheduler.load_state_dict(saved); a schedule by "
                    f"hand must go on from step {count}. Resume again from the checkpoint of step {begin - 1}.",
                )  # fmt: skip
                return

    def _restarted(self, run: RunLog, row: int, scheduler: Mapping[str, Any]) -> bool:
        rates, steps = run.table("lr").values, self.thresholds.steps
        again, beginning = rates[row + 1 : row + 1 + steps], rates[1 : 1 + steps]
        if (again == again[0]).all() or scheduler.get("last_epoch", 0) >= steps:
            return False
        fresh = scheduler.get("last_epoch") == 0 and bool((calls_of(run).all[row + 1 : row + 1 + steps] > 0).all())
        if run.steps[0] != 1 or row <= steps:
            return row == 0 and fresh
        if np.allclose(again, beginning, rtol=SAME, atol=0):
            return True
        factor = again * beginning[0] - beginning * again[0]  # 0 where the two are proportional
        return fresh and bool((np.abs(factor) <= SAME * np.abs(again * beginning[0])).all())


def _is_resume(event: Mapping[str, Any], run: RunLog) -> bool:
    mine = event.get("event") == "attempt" and event.get("optimizer") == run.index
    return mine and isinstance(event.get("first_step"), int) and int(event.get("count", 0)) > 0


def _scheduler_of_its_process(run: RunLog, place: int) -> Mapping[str, Any]:
    """The scheduler first seen stepping in the process that noted the event at a place; empty where none was."""
    opened = [i for i, event in enumerate(run.events) if event.get("event") == "open"]
    begin = max((i for i in opened if i < place), default=0)
    end = min((i for i in opened if i > place), default=len(run.events))
    process = run.events[begin:end]
    return next((e for e in process if e.get("event") == "scheduler" and e.get("optimizer") == run.index), {})
