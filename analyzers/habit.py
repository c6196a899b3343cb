"""What a loop does at every step, as against once: most mistakes of wiring are habits, and a single such step may be meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stabkit.analyzers.base import NoOccasion, NotApplicable
from stabkit.analyzers.series import Flags, episodes
from stabkit.finding import State
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["Habit", "habit", "if_recorded", "need_backward", "need_clipping"]


@dataclass(frozen=True)
class Habit:
    """Something that a loop did at several steps in a row.

    Attributes:
        begin: The first of these steps.
        told: The step at which they were enough.
        end: The last step at which it was done, in a row or not.
        count: At how many steps it was done.
        lasts: Whether it was still done at the last step.
    """

    begin: int
    told: int
    end: int
    count: int
    lasts: bool

    def span(self) -> dict[str, Any]:
        """The fields of a `Finding` that say when."""
        state = State.ONGOING if self.lasts else State.RECOVERED
        return {"first_step": self.told, "last_step": self.end, "last_good_step": self.begin - 1, "state": state}


def habit(run: RunLog, flags: Flags, least: int) -> Habit | None:
    """The habit of doing what is flagged [n] at `least` steps in a row; None where it never was one."""
    for first, last in episodes(flags):
        if last - first + 1 >= least:
            at = np.flatnonzero(flags)
            begin, told, end = (int(run.steps[i]) for i in (first, first + least - 1, at[-1]))
            return Habit(begin, told, end, int((at >= first).sum()), bool(flags[-1]))
    return None


def if_recorded(run: RunLog, metric: str) -> Array:
    """A step metric [n], NaN throughout where it was not recorded."""
    return run.series(metric).values if run.has(metric) else np.full(len(run.steps), np.nan)


def need_backward(run: RunLog) -> None:
    """Raises NotApplicable where no backward call was seen, as when the whole step is compiled."""
    if not (run.series("backward_count").values > 0).any():
        raise NotApplicable("no backward call was seen")


def need_clipping(run: RunLog) -> None:
    """Raises NotApplicable where no call with a limit was seen."""
    counts = ("clips_before_backward", "clips_between_backwards", "clips_after_backward")
    if not any((run.series(name).values > 0).any() for name in counts):
        raise NoOccasion("no call of clip_grad_norm_ or clip_grad_value_ with a limit was seen")
