"""A step record that waits for numbers from a device; where everything is on the host it waits for nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stabkit.hooks.gradients import GradientLedger
from stabkit.hooks.loss import LossWindow
from stabkit.hooks.measurement import Measurement
from stabkit.hooks.transfer import Batch, Later, Number
from stabkit.hooks.wiring import Wiring
from stabkit.runlog import StepRecord

__all__ = ["Seen", "Unfinished"]

_DIFFERENT_ROOTS = 3  # `loss_reduction` of roots that were neither divided nor of different kinds: their mean


@dataclass
class Seen:
    """What was seen of one step of an optimizer.

    Attributes:
        sharded: Whether this process holds a part of any tensor only.
        window: The backward calls.
        ledger: The gradients.
        wiring: The order in which the loop did things.
        measurement: The tensors; None where the step was not measured.
    """

    sharded: bool
    window: LossWindow
    ledger: GradientLedger
    wiring: Wiring
    measurement: Measurement | None


class Unfinished:
    """A record and what it waits for.

    Args:
        record: Filled as far as the host knows.
        seen: What was seen of the step; None for a record of weights only.
        batch: The numbers.

    Attributes:
        by_hand: Whether something else than a clipping call that was seen wrote to the gradients.
        beside: Numbers that come along, by name, and are no part of the record.
    """

    def __init__(self, record: StepRecord, seen: Seen | None, batch: Batch) -> None:
        self.record, self._seen, self._batch = record, seen, batch
        self.by_hand = False
        self.beside: dict[str, Later] = {}
        self._asked: dict[str, Later] = {}
        if seen is not None:
            for part in (seen.window, seen.ledger, seen.wiring):
                part.ask(batch)

    @property
    def lost(self) -> bool:
        """Whether its numbers will never come."""
        return self._batch.lost

    def ask(self, name: str, number: Number | None) -> Later:
        """Wait for a number; None stands for one that is missing."""
        self._asked[name] = self._batch.add(math.nan if number is None else number)
        return self._asked[name]

    def ready(self) -> bool:
        """Whether `finish` would not have to wait."""
        return self._batch.arrived()

    def finish(self) -> StepRecord:
        """The record, complete."""
        self._batch.settle()
        record, seen = self.record, self._seen
        if seen is None:
            return record
        numbers = {name: later.value for name, later in self._asked.items()}
        record.loss_scale, record.skipped = numbers["loss_scale"], int(numbers["skipped"] > 0)
        record.applied_steps = int(numbers["applied_steps"]) if numbers["applied_steps"] >= 0 else -1
        outside = 0 if math.isnan(numbers["unguarded"]) else 1 if numbers["unguarded"] == 1 else 2
        record.step_outside_scaler = 3 if outside and self.by_hand else outside
        seen.wiring.tell(record)
        record.backward_count, record.loss_kinds = len(seen.window.calls), seen.window.kinds
        record.loss, record.loss_sum, record.loss_reduction = seen.window.reduce()
        alike = seen.wiring.alike and seen.window.plain and not seen.ledger.hand_made()
        if record.loss_reduction == _DIFFERENT_ROOTS and alike:
            record.undivided_losses = record.backward_count
        if seen.measurement is not None:
            self._read_tensors(seen.measurement, seen.sharded)
        self._read_clips(seen)
        return record

    def _read_tensors(self, measurement: Measurement, sharded: bool) -> None:
        record = self.record
        record.tensors = measurement.columns
        if sharded:  # the norm of a shard is nothing to anybody; the reader adds up those of all ranks
            return
        places = sorted({*measurement.places, *measurement.unread}) if measurement.unread else measurement.places
        record.grad_norm_used = measurement.norm("grad_used_sumsq", places)
        record.grad_norm = measurement.norm("grad_sumsq", places)
        record.weight_norm = measurement.norm("weight_sumsq")
        record.update_norm = measurement.norm("update_sumsq")
        record.applied_update_norm = measurement.norm("applied_update_sumsq")

    def _read_clips(self, seen: Seen) -> None:
        record, ledger = self.record, seen.ledger
        by_value, by_norm = ledger.the_one("value"), ledger.the_one("norm")
        if by_value:
            record.clip_value = by_value.limit
        if by_norm is None:
            return
        record.clip_max_norm = by_norm.limit
        record.clip_coefficient = ledger.coefficient(by_norm)
        if seen.sharded and not by_norm.everywhere:
            return
        total = ledger.total_norm(by_norm)
        if math.isnan(record.grad_norm) and by_norm.order == 2 and ledger.covers(by_norm):
            # An infinite norm is true only if an element is: otherwise torch's sum of squares has overflowed.
            nonfinite = seen.measurement is not None and seen.measurement.total("grad_nonfinite") > 0
            record.grad_norm = total if math.isfinite(total) or nonfinite else math.nan
