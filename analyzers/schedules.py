"""What the rules on schedules ask: which of torch's schedulers were seen, and when they were stepped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stabkit.analyzers.base import NoOccasion
from stabkit.analyzers.series import Indices
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["STEPPED", "Calls", "calls_of", "changes_of", "first_scheduler", "kinds_of", "noted"]

STEPPED = (
    ("lr", "group"),
    ("scheduler_steps_before_backward", "step"),
    ("scheduler_steps_between_backwards", "step"),
    ("scheduler_steps_after_backward", "step"),
)
"""What a rule requires that asks when a scheduler was stepped."""


@dataclass(frozen=True)
class Calls:
    """Steps of the scheduler since the previous optimizer step, each [n].

    Attributes:
        before: Those before any backward call.
        between: Those that a further backward call of the same step followed.
        after: Those after the last backward call, before the optimizer stepped.
    """

    before: Array
    between: Array
    after: Array

    @property
    def all(self) -> Array:
        """All of them."""
        return self.before + self.between + self.after


def calls_of(run: RunLog) -> Calls:
    """When the scheduler was stepped."""
    return Calls(*(run.series(name).values for name, scope in STEPPED if scope == "step"))


def noted(run: RunLog, event: str) -> list[Mapping[str, Any]]:
    """The events of a kind that are about this view's optimizer, oldest first."""
    return [e for e in run.events if e.get("event") == event and e.get("optimizer") == run.index]


def kinds_of(run: RunLog) -> set[str]:
    """Class names of the schedulers of torch that were seen stepping."""
    return {str(event.get("kind")) for event in noted(run, "scheduler")}


def first_scheduler(run: RunLog) -> Mapping[str, Any]:
    """The first scheduler that was seen stepping, as it was before it did.

    Raises:
        NotApplicable: none was.
    """
    seen = noted(run, "scheduler")
    if not seen:
        raise NoOccasion("no scheduler of torch was seen stepping; one written by hand is not seen")
    return seen[0]


def changes_of(rates: Array) -> Indices:
    """Rows at which a rate [n] is another than in the row before, the first row with it. A schedule of epochs holds still."""
    return np.flatnonzero(np.concatenate([[True], rates[1:] != rates[:-1]])[: len(rates)])
