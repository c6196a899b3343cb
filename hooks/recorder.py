"""Turns what was seen of one optimizer between two steps into one `StepRecord`."""

from __future__ import annotations

import math
import time

import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks.clip import ClipCall
from stabkit.hooks.distributed import Pending
from stabkit.hooks.gradients import GradientLedger, Signature, signatures
from stabkit.hooks.loss import LossWindow, Root
from stabkit.hooks.measurement import Measurement, weights_now
from stabkit.hooks.optimizer import Roster, StepCount, group_values
from stabkit.hooks.transfer import to_host
from stabkit.runlog import StepRecord

__all__ = ["StepRecorder"]


class StepRecorder:
    """The steps of one optimizer.

    Args:
        optimizer: The optimizer.
        every: Measure the tensors of every n-th step.
        exact_updates: Copy all weights before each measured step, so that the applied update is measured.
        pending: Where to look for gradients that are kept back; None where there is no such place.

    Attributes:
        roster: The optimizer's parameters; another object as soon as they are others.
        spoiled: Whether a failure of our own has made a gap in what was seen since the last step.
    """

    def __init__(
        self, optimizer: Optimizer, every: int = 1, exact_updates: bool = False, pending: Pending | None = None
    ) -> None:
        self.optimizer = optimizer
        self.every = every
        self.exact_updates = exact_updates
        self.roster = Roster(optimizer)
        self._ledger = GradientLedger(self.parameters)
        self._count = StepCount()
        self._at_backward: list[Signature] = []
        self._pending = pending
        self._kept: tuple[tuple[int, int], ...] = ()
        self.begin_window()

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The optimizer's parameters, in order."""
        return self.roster.parameters

    def begin_window(self) -> None:
        """Forget what was seen: the next step begins."""
        self.spoiled = False
        self._window = LossWindow()
        self._ledger.begin()
        self._measurement: Measurement | None = None
        self._closure = False
        self._loss_scale = math.nan

    def take_over(self, early: StepRecorder) -> None:
        """Go on from what another recorder saw of the same gradients before their optimizer was known."""
        self.spoiled, self._window, self._ledger = early.spoiled, early._window, early._ledger
        self._loss_scale = early._loss_scale
        self._ledger.reorder(self.parameters)

    def refresh(self) -> None:
        """Follow a change of the optimizer's parameters."""
        if not self.roster.holds(self.optimizer):
            self.roster = Roster(self.optimizer)
            self._ledger.follow(self.parameters)

    def count(self) -> int:
        """The optimizer's own count of steps."""
        return self._count.now(self.optimizer, self.parameters)

    def backward_begin(self) -> None:
        """A backward call begins; it may or may not reach this optimizer's parameters."""
        self.refresh()
        self._at_backward = now = signatures(self.parameters)
        kept, self._kept = self._kept, self._kept_back()
        if self._window.begun:
            if not (kept and kept == self._kept) and self._ledger.dropped(now):
                spoiled = self.spoiled
                self.begin_window()
                self.spoiled = spoiled
            else:
                self._ledger.before_backward(now)

    def backward_end(self, roots: list[Root], finished: bool, scale: float | None = None) -> None:
        """A backward call is over, or has raised: its loss is this optimizer's if it changed one of its gradients.

        Args:
            roots: Its roots, before scaling.
            finished: Whether it did not raise.
            scale: What they were multiplied by before backward; None where they were not.
        """
        now = signatures(self.parameters)
        kept, self._kept = self._kept, self._kept_back()
        if now == self._at_backward and kept == self._kept:
            return
        self._ledger.after_backward(now)
        self._loss_scale = math.nan if scale is None else scale
        if finished:
            self._window.calls.append(roots)
        else:
            self._window.failed = True

    def _kept_back(self) -> tuple[tuple[int, int], ...]:
        return self._pending.of(self.parameters) if self._pending else ()

    def unscale_begin(self) -> None:
        """A scaler is about to take its scale off the gradients: a write that is understood.

        Of a plain tensor it leaves no trace, and nothing needs to be done.
        """
        if not self.roster.plain:
            self._ledger.close()

    def unscale_end(self) -> None:
        """The scale is off."""
        if not self.roster.plain:
            self._ledger.accept()

    def clip_begin(self, call: ClipCall, scale: float = 1.0) -> None:
        """A clipping call begins, on gradients that still carry a loss scale, or no longer."""
        self._ledger.clip_begins(call, scale)

    def clip_end(self, call: ClipCall) -> None:
        """A clipping call is over."""
        self._ledger.clip_ends(call)

    def step_begin(self, step: int, closure: bool) -> None:
        """The optimizer is about to step: look at weights and moments while they are still those before the step."""
        self._closure = closure
        if not closure:
            self._ledger.close()
        if (step - 1) % self.every == 0 and self.roster.on_host:
            self._measurement = Measurement(self.optimizer, self.roster, self.exact_updates, closure)

    def step_end(self, step: int, attempt: int, layout: int, skipped: bool = False) -> StepRecord:
        """The optimizer has stepped: measure.

        Args:
            step: The step's number.
            attempt: The attempt it belongs to.
            layout: The number of the layout its tensors are in.
            skipped: Whether a scaler made the optimizer pass it over.
        """
        if self._closure:
            self._ledger.close()
        record = StepRecord(step, attempt, layout, time=time.time(), groups=group_values(self.optimizer))
        counts = self._count.read(self.optimizer, self.parameters)
        record.applied_steps = int(max(counts, default=-1)) if self.optimizer.state else -1
        record.skipped, record.loss_scale = int(skipped), self._loss_scale
        record.backward_count = len(self._window.calls)
        record.loss, record.loss_sum, record.loss_reduction = self._window.reduce(to_host(self._window.values()))
        if self._measurement is not None:
            self._measurement.finish(record.groups, counts, self._ledger, skipped)
            record.tensors = self._measurement.columns
            if not self.roster.sharded:  # the norm of a shard is nothing to anybody; the reader adds up those of all ranks
                places = self._measurement.places
                record.grad_norm_used = self._measurement.norm("grad_used_sumsq", places)
                record.grad_norm = self._measurement.norm("grad_sumsq", places)
                record.weight_norm = self._measurement.norm("weight_sumsq")
                record.update_norm = self._measurement.norm("update_sumsq")
        self._read_clips(record)
        return record

    def weights(self, attempt: int, layout: int) -> StepRecord:
        """A record for step 0 that holds the weights as they are."""
        columns = weights_now(self.optimizer, self.roster)
        return StepRecord(0, attempt, layout, time=time.time(), groups=group_values(self.optimizer), tensors=columns)

    def _read_clips(self, record: StepRecord) -> None:
        by_value, by_norm = self._ledger.the_one("value"), self._ledger.the_one("norm")
        if by_value:
            record.clip_value = by_value.limit
        if by_norm is None:
            return
        record.clip_max_norm = by_norm.limit
        record.clip_coefficient = self._ledger.coefficient(by_norm)
        if self.roster.sharded and not by_norm.everywhere:
            return
        total = self._ledger.total_norm(by_norm)
        places = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if math.isnan(record.grad_norm) and by_norm.order == 2 and self._ledger.covers(by_norm, places):
            # An infinite norm is true only if an element is: otherwise torch's sum of squares has overflowed.
            nonfinite = self._measurement is not None and self._measurement.total("grad_nonfinite") > 0
            record.grad_norm = total if math.isfinite(total) or nonfinite else math.nan
