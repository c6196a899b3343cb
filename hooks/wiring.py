"""Keeps the order in which a loop clipped, scaled, stepped its scheduler and stepped: facts, of which the rules make verdicts.

All of it is known to the host without looking at a single gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stabkit.hooks.gradients import Signature
from stabkit.hooks.transfer import Batch, Later, Number
from stabkit.runlog import StepRecord

__all__ = ["Wiring"]


class Wiring:
    """What happened between two steps of one optimizer.

    The numbers are those of the step record (see `stabkit.metric`). A clipping call, or a step of the scheduler, counts as one
    after the last backward until a further backward turns it into one between two.
    """

    def __init__(self) -> None:
        self._left: Sequence[Signature] = ()  # the gradients as the last step left them
        self.begin()

    def begin(self) -> None:
        """The optimizer has stepped: count anew."""
        self._clips_before = self._clips_between = self._clips_after = 0
        self._schedules_before = self._schedules_between = self._schedules_after = 0
        self._scaler_updates = self._dropped = 0
        self._clip_scale: Number = math.nan
        self._asked = Later()
        self._kept = self._backward_seen = False

    def backward(self, found: Sequence[Signature], first: bool) -> None:
        """A backward call has reached the optimizer's gradients.

        Args:
            found: The gradients as it found them.
            first: Whether it is the first since the last step, or since gradients were thrown away.
        """
        if first:
            self._kept = any(s is not None for s in found) and list(found) == list(self._left)
        self._clips_between += self._clips_after
        self._schedules_between += self._schedules_after
        self._clips_after = self._schedules_after = 0
        self._backward_seen = True

    def dropped(self, backwards: int) -> None:
        """The gradients of so many backward calls were thrown away."""
        self._dropped += backwards
        self._clips_before += self._clips_after + self._clips_between
        self._schedules_before += self._schedules_after + self._schedules_between
        self._clips_between = self._clips_after = self._schedules_between = self._schedules_after = 0
        self._backward_seen = False

    def clipped(self, limit: float, scale: Number) -> None:
        """A clipping call was made on its parameters, while gradients carried `scale`. One without limit only measures."""
        if not math.isfinite(limit):
            return
        self._clip_scale = scale
        if self._backward_seen:
            self._clips_after += 1
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
        self._asked = batch.add(self._clip_scale)

    def tell(self, record: StepRecord) -> None:
        """Put the facts into the record of the step."""
        record.clips_before_backward, record.clips_between_backwards = self._clips_before, self._clips_between
        record.clips_after_backward, record.clip_scale = self._clips_after, self._asked.value
        record.kept_gradients, record.dropped_backwards = int(self._kept), self._dropped
        record.scaler_updates = self._scaler_updates
        record.scheduler_steps_before_backward = self._schedules_before
        record.scheduler_steps_between_backwards = self._schedules_between
        record.scheduler_steps_after_backward = self._schedules_after

    def stepped(self, left: Sequence[Signature]) -> None:
        """The optimizer has stepped and left the gradients so."""
        self._left = left
        self.begin()
