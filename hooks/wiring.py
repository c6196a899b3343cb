"""Keeps the order in which a loop clipped, scaled, stepped its scheduler and stepped: facts, of which the rules make verdicts.

All of it is known to the host without looking at a single gradient.
"""

from __future__ import annotations

import math

from stabkit.hooks.signatures import Signatures, none
from stabkit.hooks.transfer import Batch, Later, Number
from stabkit.runlog import StepRecord

__all__ = ["Wiring"]


class Wiring:
    """What happened between two steps of one optimizer.

    The numbers are those of the step record (see `stabkit.metric`). A clipping call, or a step of the scheduler, counts as one
    after the last backward until a further backward turns it into one between two; a clipping call only where that backward
    adds to a gradient it has clipped.

    Attributes:
        alike: Whether every backward call so far reached the same gradients.
    """

    def __init__(self) -> None:
        self._left: Signatures = b""  # the gradients as the last step left them
        self.begin()

    def begin(self) -> None:
        """The optimizer has stepped: count anew."""
        self._clips_before = self._clips_between = 0
        self._clips_after: tuple[frozenset[int], ...] = ()
        self._reached: frozenset[int] = frozenset()
        self.alike = True
        self._schedules_before = self._schedules_between = self._schedules_after = 0
        self._scaler_updates = self._dropped = 0
        self._clip_scale: Number = math.nan
        self._kept: Number = 0.0
        self._asked = Later(), Later()
        self._backward_seen = False

    def left_so(self, now: Signatures) -> bool:
        """Whether there are gradients and they are as the last step left them."""
        return now == self._left and not none(now)

    def backward(self, reached: frozenset[int], kept: Number) -> None:
        """A backward call has reached the optimizer's gradients.

        Args:
            reached: The places of those it reached.
            kept: Above 0 where it is the first since the last step and found them as that had left them, not all zero.
        """
        self._kept = self._kept if self._backward_seen else kept
        mixed = [places for places in self._clips_after if places & reached]
        self._clips_between += len(mixed)
        self._clips_after = tuple(places for places in self._clips_after if not places & reached)
        self._schedules_between += self._schedules_after
        self._schedules_after = 0
        self.alike = self.alike and self._reached in (frozenset(), reached)
        self._reached = reached
        self._backward_seen = True

    def dropped(self, backwards: int) -> None:
        """The gradients of so many backward calls were thrown away."""
        self._dropped += backwards
        self._clips_before += len(self._clips_after) + self._clips_between
        self._schedules_before += self._schedules_after + self._schedules_between
        self._clips_between = self._schedules_between = self._schedules_after = 0
        self._clips_after = ()
        self._reached, self.alike = frozenset(), True
        self._backward_seen, self._kept = False, 0.0

    def clipped(self, limit: float, scale: Number, places: frozenset[int]) -> None:
        """A clipping call was made on the gradients at `places`, which carried `scale`. One without limit only measures."""
        if not math.isfinite(limit):
            return
        self._clip_scale = scale
        if self._backward_seen:
            self._clips_after += (places,)
        else:
            self._clips_before += 1

    def scheduled(self) -> None:
        """The optimizer's scheduler was stepped."""
        if self._backward_seen:
            self._schedules_after += 1
        else:
            self._schedules_before += 1

    def scaler_updated(self) -> None:
        """The scaler was updated."""
        self._scaler_updates += 1

    def ask(self, batch: Batch) -> None:
        """Put what is still a tensor into a batch, to be fetched before `tell`."""
        self._asked = batch.add(self._clip_scale), batch.add(self._kept)

    def tell(self, record: StepRecord) -> None:
        """Put the facts into the record of the step."""
        record.clips_before_backward, record.clips_between_backwards = self._clips_before, self._clips_between
        record.clips_after_backward, record.clip_scale = len(self._clips_after), self._asked[0].value
        record.kept_gradients, record.dropped_backwards = int(self._asked[1].value > 0), self._dropped
        record.scaler_updates = self._scaler_updates
        record.scheduler_steps_before_backward = self._schedules_before
        record.scheduler_steps_between_backwards = self._schedules_between
        record.scheduler_steps_after_backward = self._schedules_after

    def stepped(self, left: Signatures) -> None:
        """The optimizer has stepped and left the gradients so."""
        self._left = left
        self.begin()
