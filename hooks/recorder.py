"""Turns what was seen of one optimizer between two steps into one `StepRecord`."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping

import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks import ways
from stabkit.hooks.cadence import Cadence
from stabkit.hooks.clip import ClipCall
from stabkit.hooks.counting import StepCount, device_count
from stabkit.hooks.distributed import Pending
from stabkit.hooks.gradients import GradientLedger
from stabkit.hooks.loss import LossWindow, Root
from stabkit.hooks.measurement import Measurement, weights_now
from stabkit.hooks.optimizer import group_values
from stabkit.hooks.roster import Roster
from stabkit.hooks.scaler import carried_scale, found_inf
from stabkit.hooks.signatures import Signatures, changed, signatures
from stabkit.hooks.transfer import Batch, Number
from stabkit.hooks.trust import Trust
from stabkit.hooks.unfinished import Seen, Unfinished
from stabkit.hooks.wiring import Wiring
from stabkit.runlog import StepRecord

__all__ = ["StepRecorder"]


class StepRecorder:
    """The steps of one optimizer.

    Args:
        optimizer: The optimizer.
        cadence: Says which steps have their tensors measured; every one where this is left out.
        exact_updates: Copy all weights before each measured step, so that the applied update is measured.
        pending: Where to look for gradients that are kept back; None where there is no such place.

    Attributes:
        roster: The optimizer's parameters; another object as soon as they are others, or something else is known of them.
        trust: Whether the optimizer's update may be worked out from its state.
        spoiled: Whether a failure of our own has made a gap in what was seen since the last step.
        wiring: In which order the loop did things.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        cadence: Cadence | None = None,
        exact_updates: bool = False,
        pending: Pending | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.cadence = cadence or Cadence()
        self.exact_updates = exact_updates
        self.roster = Roster(optimizer)
        self.trust = Trust(optimizer)
        self._ledger = GradientLedger(self.parameters)
        self._count = StepCount()
        self.wiring = Wiring()
        self._at_backward: Signatures = b""
        self._window = LossWindow()
        self._pending = pending
        self._kept: tuple[tuple[int, int], ...] = ()
        self._uncleared: Number = 0.0  # see Wiring.backward
        self.begin_window()

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The optimizer's parameters, in order."""
        return self.roster.parameters

    @property
    def begun(self) -> bool:
        """Whether any backward has reached the optimizer's gradients since the last step."""
        return self._window.begun

    def begin_step(self) -> None:
        """The optimizer has stepped: the next step begins."""
        left = self._measurement.signatures if self._measurement else None
        self.wiring.stepped(signatures(self.parameters) if left is None or self.spoiled else left)
        self.begin_window()

    def begin_window(self) -> None:
        """Forget the gradients that were seen: a step begins, or they were thrown away."""
        self.spoiled = False
        self._window = self._window.following()
        self._ledger = self._ledger.following()
        self._measurement: Measurement | None = None
        self._closure = False
        self._loss_scale: Number | None = None
        self._unguarded: Number | None = None
        self._batch = Batch()

    def take_over(self, other: StepRecorder, calls: list[list[Root]] | None = None) -> None:
        """Go on from what another recorder saw of the same gradients.

        Args:
            other: It followed these parameters, or most of them, until now.
            calls: The backward calls that reached these parameters; all it saw by default.
        """
        self.spoiled, self._loss_scale, self.wiring = other.spoiled, other._loss_scale, copy.copy(other.wiring)
        self._window = LossWindow(list(other._window.calls) if calls is None else calls, other._window.failed)
        self._ledger = other._ledger.part(self.parameters)

    def refresh(self, fully: bool = True) -> None:
        """Follow a change of the optimizer's parameters; unless `fully`, not of what is frozen."""
        if not self.roster.holds(self.optimizer, fully):
            self.roster = Roster(self.optimizer)
            self._ledger.follow(self.parameters)
        elif self.trust.changed:
            self.roster = Roster(self.optimizer)
        self.trust.changed = False

    def count(self) -> int:
        """The optimizer's own count of steps."""
        return self._count.now(self.optimizer, self.parameters)

    def backward_begin(self) -> None:
        """A backward call begins; it may or may not reach this optimizer's parameters."""
        self.refresh()
        self._at_backward = now = signatures(self.parameters)
        kept_back, self._kept = self._kept, self._kept_back()
        self._uncleared = self._ledger.alive() if self.wiring.left_so(now) else 0.0
        if self._window.begun:
            if not (kept_back and kept_back == self._kept) and self._ledger.dropped(now):
                self.wiring.dropped(len(self._window.calls))
                # A closure may drop and compute them several times within one step, which has begun for good.
                kept = self.spoiled, self._measurement, self._closure, self._batch
                self.begin_window()
                self.spoiled, self._measurement, self._closure, self._batch = kept
            else:
                self._ledger.before_backward(now)

    def backward_end(self, roots: list[Root], finished: bool, scale: Number | None = None) -> None:
        """A backward call is over, or has raised: its loss is this optimizer's if it changed one of its gradients.

        Args:
            roots: Its roots, before scaling.
            finished: Whether it did not raise.
            scale: What they were multiplied by before backward; None where they were not.
        """
        now = signatures(self.parameters)
        kept_back, self._kept = self._kept, self._kept_back()
        if now == self._at_backward and kept_back == self._kept:
            return
        self.wiring.backward(frozenset(changed(self._at_backward, now)), 0.0 if self._window.begun else self._uncleared)
        self._ledger.after_backward(now)
        self._loss_scale = scale
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

    def clip_begin(self, call: ClipCall, scale: Number = 1.0) -> None:
        """A clipping call begins, on gradients that still carry a loss scale, or no longer."""
        self._ledger.clip_begins(call, scale)
        concerned = self._ledger.concerned(call)
        if concerned is not None:
            self.wiring.clipped(call.limit, scale, concerned)

    def zeroed(self, parameters: Iterable[torch.Tensor]) -> None:
        """The gradients of these were set to None or to zero."""
        self._ledger.zeroed(parameters)

    def clip_end(self, call: ClipCall) -> None:
        """A clipping call is over."""
        self._ledger.clip_ends(call)

    def step_begin(self, step: int, closure: bool, unguarded_scale: Number | None = None) -> None:
        """The optimizer is about to step: look at weights and moments while they are still those before the step.

        Args:
            step: The step's number.
            closure: Whether a closure was given, which may compute the gradients inside.
            unguarded_scale: What the gradients still carry of a loss scale, where no scaler makes this step; NaN where unknown.
        """
        self._closure = closure
        if self.cadence.due(step) and self.roster.readable:
            self._measurement = ways.begin(self.optimizer, self.roster, self.trust, self.exact_updates, closure, self._batch)
        if not closure:
            if not (self._measurement and self._measurement.defers):
                self._ledger.close(self._measurement.signatures if self._measurement else None)
            self._unguarded = None if self._loss_scale is None else unguarded_scale

    def step_end(
        self, step: int, attempt: int, layout: int, skipped: bool = False, beside: Mapping[str, Number] | None = None
    ) -> Unfinished:
        """The optimizer has stepped: measure.

        Args:
            step: The step's number.
            attempt: The attempt it belongs to.
            layout: The number of the layout its tensors are in.
            skipped: Whether a scaler made the optimizer pass it over.
            beside: Numbers that are to be brought along.
        """
        if self._closure:
            self._ledger.close()
        record = StepRecord(step, attempt, layout, time=time.time(), groups=group_values(self.optimizer))
        counts = self._count.read(self.optimizer, self.parameters, self._measurement.look()) if self._measurement else []
        seen = Seen(self.roster.sharded, self._window, self._ledger, copy.copy(self.wiring), self._measurement)
        unfinished = Unfinished(record, seen, self._batch)
        unfinished.beside = {name: self._batch.add(number) for name, number in (beside or {}).items()}
        unfinished.ask("loss_scale", self._loss_scale)
        unfinished.ask("unguarded", self._unguarded)
        unfinished.ask("applied_steps", device_count(self.optimizer, self.count()) if self.optimizer.state else -1.0)
        passed_over = unfinished.ask("skipped", 1.0 if skipped else found_inf(self.optimizer))
        carried = unfinished.ask("carried_scale", carried_scale(self.optimizer))
        if self._measurement is not None:
            self._measurement.finish(record.groups, counts, self._ledger, passed_over, carried)
        unfinished.by_hand = not self._closure and self._ledger.hand_made()
        self._batch.send()
        return unfinished

    def weights(self, attempt: int, layout: int) -> Unfinished:
        """A record for step 0 that holds the weights as they are."""
        record = StepRecord(0, attempt, layout, time=time.time(), groups=group_values(self.optimizer))
        batch = Batch()
        record.tensors = weights_now(self.optimizer, self.roster, batch)
        batch.send()
        return Unfinished(record, None, batch)
