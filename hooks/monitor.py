"""Attaches the recorders to a training loop and turns their events into records, one per optimizer step."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks import clip, dispatch, loss, optimizer, precision
from stabkit.hooks.names import named_parameters, roles
from stabkit.hooks.recorder import StepRecorder
from stabkit.runlog import Layout, StepRecord

__all__ = ["Monitor", "Sink"]

_FAULTS_ALLOWED = 3


class Sink(Protocol):
    """Where a monitor's records go. Whatever a method raises is caught, noted, and after a few times the monitor stops."""

    def layout(self, optimizer: int, layout: Layout) -> int:
        """Announce the layout of an optimizer's records; returns the number to put into them."""

    def attempt(self, optimizer: int, count: int) -> tuple[int, int]:
        """An optimizer that has counted so many steps (-1: it keeps no count) is about to take its first, or has been given
        another state since its last. Returns the attempt and the number of the step it is about to take.
        """

    def step(self, optimizer: int, record: StepRecord) -> None:
        """Take a record."""

    def event(self, event: str, **details: Any) -> None:
        """Take a note about the run."""


class _Watched:
    """An optimizer with its recorder and its place in the log."""

    def __init__(self, index: int, recorder: StepRecorder) -> None:
        self.index = index
        self.recorder = recorder
        self.layout = -1
        self.attempt = -1
        self.step = 0
        self.count = -1


class Monitor:
    """Watches the optimizers of one model.

    Args:
        model: A module or a dict of modules.
        optimizers: The optimizers; empty to adopt whichever steps the model's parameters.
        sink: Where records go.
        every: Measure the tensors of every so-manieth step.
        exact_updates: Measure the applied update from a copy of the weights.
        on_fault: Called once, with a sentence for the user, when something inside stabkit fails.
    """

    def __init__(
        self,
        model: Any,
        optimizers: Sequence[Any],
        sink: Sink,
        every: int = 1,
        exact_updates: bool = False,
        on_fault: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.alive = True
        self._model, self._sink, self._on_fault = model, sink, on_fault
        self._every, self._exact_updates = every, exact_updates
        self._names, self._roles = named_parameters(model), roles(model)
        self._adopts = not optimizers
        self._watched: dict[int, _Watched] = {}
        for o in optimizers:
            self._watch(optimizer.unwrap(o))
        self._autocast: set[str] = set()
        self._faults = 0
        self._told = False

    def attach(self) -> None:
        """Begin to receive events."""
        dispatch.attach(self, _install)

    def detach(self) -> None:
        """Receive no more; the last monitor to leave restores torch."""
        dispatch.detach(self)

    @property
    def step(self) -> int:
        """The last step of the first optimizer, 0 before it."""
        return next((w.step for w in self._watched.values()), 0)

    def owns_parameters(self) -> bool:
        """Whether the optimizers hold at least one parameter of the model; True while one is still to be adopted."""
        held = {id(p) for w in self._watched.values() for p in w.recorder.parameters}
        return self._adopts or bool(held & set(self._names))

    def receive(self, event: str, *details: Any) -> None:
        """Handle an event of a recorder (see `dispatch.notify`)."""
        getattr(self, f"_on_{event}")(*details)

    def fault(self, event: str, error: Exception) -> None:
        """Note a failure of our own; after a few, stop watching. Training goes on either way."""
        self._faults += 1  # in a row
        self.alive = self._faults < _FAULTS_ALLOWED
        where = traceback.extract_tb(error.__traceback__)
        place = f"{where[-1].filename.rpartition('/')[2]}:{where[-1].lineno}" if where else ""
        if not self._told:
            self._told = True
            self._on_fault(f"a step could not be recorded ({type(error).__name__}: {error}); training goes on")
        try:
            what = f"{type(error).__name__}: {error}"
            self._sink.event("fault", where=event, error=what, place=place, stopped=not self.alive)
        except OSError:  # the fault may be that the disk is full
            pass

    def _on_backward_begin(self, roots: Any) -> None:
        for watched in self._watched.values():
            watched.recorder.backward_begin()

    def _on_backward_end(self, roots: Any) -> None:
        for watched in self._watched.values():
            watched.recorder.backward_end(roots)

    def _on_clip_begin(self, call: clip.ClipCall) -> None:
        for watched in self._watched.values():
            watched.recorder.clip_begin(call)

    def _on_clip_end(self, call: clip.ClipCall) -> None:
        for watched in self._watched.values():
            watched.recorder.clip_end(call)

    def _on_autocast(self, dtype: str) -> None:
        if dtype not in self._autocast:
            self._autocast.add(dtype)
            self._sink.event("autocast", dtype=dtype, step=self.step)

    def _on_step_begin(self, stepping: Optimizer, closure: bool) -> None:
        watched = self._find(stepping)
        if watched is None:
            return
        changed = watched.recorder.refresh()
        if changed or watched.layout < 0:
            layout = optimizer.layout_of(stepping, self._names, self._roles, watched.index)
            watched.layout = self._sink.layout(watched.index, layout)
        count = optimizer.count_of(stepping)
        if watched.attempt < 0 or count != watched.count:  # the first step, or a checkpoint was loaded since the last
            watched.attempt, watched.step = self._sink.attempt(watched.index, count)
            if watched.step == 1:
                self._sink.step(watched.index, watched.recorder.weights(0, watched.attempt, watched.layout))
        else:
            watched.step += 1
        watched.recorder.step_begin(watched.step, closure)

    def _on_step_end(self, stepping: Optimizer) -> None:
        watched = self._find(stepping)
        if watched is None or watched.attempt < 0:
            return
        watched.count = optimizer.count_of(stepping)
        self._sink.step(watched.index, watched.recorder.step_end(watched.step, watched.attempt, watched.layout))
        self._faults = 0

    def _find(self, stepping: Optimizer) -> _Watched | None:
        found = self._watched.get(id(stepping))
        if found is None and self._adopts and any(id(p) in self._names for p in optimizer.parameters_of(stepping)):
            found = self._watch(stepping)
        return found

    def _watch(self, found: Optimizer) -> _Watched:
        recorder = StepRecorder(found, self._every, self._exact_updates)
        return self._watched.setdefault(id(found), _Watched(len(self._watched), recorder))


def _install() -> list[dispatch.Undo]:
    undo = [*optimizer.install(), *clip.install(), loss.install(), precision.install()]
    return [u for u in undo if u is not None]
