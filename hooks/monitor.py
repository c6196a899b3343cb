"""Attaches the recorders to a training loop and turns their events into records, one per optimizer step."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks import clip, dispatch, distributed, loss, optimizer, precision, scaler
from stabkit.hooks.names import named_parameters, parameters_in, roles
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
        self.laid_out: optimizer.Roster | None = None  # the parameters that `layout` is about
        self.layout = -1
        self.attempt = -1
        self.step = 0
        self.count = -1
        self.stepped = False


class _Undecided:
    """Stands in for the optimizer that will be adopted, until its first step shows which it is."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self.param_groups = [{"params": parameters}]
        self.state: dict[torch.Tensor, Any] = {}


class Monitor:
    """Watches the optimizers of one model.

    Args:
        model: A module or a dict of modules.
        optimizers: The optimizers; empty to adopt whichever steps the model's parameters.
        sink: Where records go.
        every: Measure the tensors of every n-th step.
        exact_updates: Measure the applied update from a copy of the weights.
        on_fault: Called once, with a sentence for the user, when something inside stabkit fails.

    Attributes:
        alive: Whether events are wanted.
        step: The last step of the first optimizer, 0 before it.
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
        self.step = 0
        self._model, self._sink, self._on_fault = model, sink, on_fault
        self._every, self._exact_updates = every, exact_updates
        self._names, self._roles = named_parameters(model), roles(model)
        self._pending = distributed.Pending(model)
        self._watched: dict[int, _Watched] = {}
        self._adopts = not optimizers
        self._early: StepRecorder | None = None
        if self._adopts:
            self._early = StepRecorder(_Undecided(parameters_in(model)))  # type: ignore[arg-type]
        for o in optimizers:
            found = optimizer.unwrap(o)
            self._watch(found, StepRecorder(found, every, exact_updates, self._pending))
        self._roots: list[loss.Root] = []
        self._scaling = scaler.Scaling()
        self._autocast: set[str] = set()
        self._faults = self._in_a_row = 0
        self._told = False

    def attach(self) -> None:
        """Begin to receive events."""
        dispatch.attach(self)

    def detach(self) -> None:
        """Receive no more and let go of the user's objects; the last monitor to leave restores torch."""
        dispatch.detach(self)
        self._watched.clear()
        self._scaling = scaler.Scaling()
        self._model = self._early = None
        self._pending = distributed.Pending({})

    def install(self) -> list[dispatch.Undo]:
        """Patch torch; what could not be patched is told in the log."""
        undo: list[dispatch.Undo] = []
        for part in (optimizer, clip, loss, precision, scaler):
            found: list[dispatch.Undo] = []
            try:
                found = part.install()
            except Exception as error:
                self.fault("install", error)
            if not found:
                self._note("unseen", what=part.__name__.rpartition(".")[2], torch=str(torch.__version__))
            undo += found
        return undo

    def owns_parameters(self) -> bool:
        """Whether the optimizers hold at least one parameter of the model; True while one is still to be adopted."""
        held = {id(p) for w in self._watched.values() for p in w.recorder.parameters}
        return self._adopts or bool(held & set(self._names))

    def receive(self, event: str, *details: Any) -> None:
        """Handle an event of a recorder (see `dispatch.notify`)."""
        getattr(self, f"_on_{event}")(*details)

    def fault(self, event: str, error: Exception) -> None:
        """Note a failure of our own; after a few in a row, stop watching. Training goes on either way."""
        if event != "step_end":  # there the gap is behind us
            for recorder in self._recorders():
                recorder.spoiled = True
        self._faults += not isinstance(error, OSError)  # a full disk may have room again later
        self.alive = self._faults < _FAULTS_ALLOWED
        where = traceback.extract_tb(error.__traceback__)
        place = f"{where[-1].filename.rpartition('/')[2]}:{where[-1].lineno}" if where else ""
        what = f"{type(error).__name__}: {error}"
        self._in_a_row += 1
        if self._in_a_row <= _FAULTS_ALLOWED:  # a full disk can refuse every step of a long run
            self._note("fault", where=event, error=what, place=place, step=self.step, stopped=not self.alive)
        self._tell(f"a step could not be recorded ({what}); training goes on")

    def _tell(self, message: str) -> None:
        if not self._told:
            self._told = True
            self._on_fault(message)

    def _note(self, event: str, **details: Any) -> None:
        try:
            self._sink.event(event, **details)
        except Exception:  # the fault may be that the disk is full
            pass

    def _recorders(self) -> list[StepRecorder]:
        found = [watched.recorder for watched in self._watched.values()]
        return [*found, self._early] if self._early else found

    def _on_backward_begin(self, roots: Any) -> None:
        self._roots = []
        for recorder in self._recorders():
            recorder.backward_begin()
        self._roots = self._scaling.unscaled(roots)

    def _on_backward_end(self, finished: bool) -> None:
        for recorder in self._recorders():
            recorder.backward_end(self._roots, finished, self._scaling.scale)
        self._roots = []

    def _on_scaled(self, scaler: Any, outputs: Any, result: Any) -> None:
        self._scaling.add(scaler, outputs, result)

    def _on_scaler_step_begin(self, stepping: Any) -> None:
        watched = self._find(optimizer.unwrap(stepping))
        if watched is not None:
            watched.stepped = False

    def _on_scaler_step_end(self, stepping: Any, finished: bool) -> None:
        passed_over = optimizer.unwrap(stepping)
        watched = self._watched.get(id(passed_over))
        if watched is not None and finished and not watched.stepped:  # the scaler found an overflow and did not call it
            self._on_step_begin(passed_over, False)
            self._on_step_end(passed_over, skipped=True)

    def _on_unscale_begin(self, stepping: Any) -> None:
        if watched := self._find(optimizer.unwrap(stepping)):
            watched.recorder.unscale_begin()

    def _on_unscale_end(self, stepping: Any) -> None:
        if watched := self._watched.get(id(optimizer.unwrap(stepping))):
            watched.recorder.unscale_end()

    def _on_clip_begin(self, call: clip.ClipCall) -> None:
        for recorder in self._recorders():
            recorder.clip_begin(call, self._scaling.still_on(recorder.optimizer))

    def _on_clip_end(self, call: clip.ClipCall) -> None:
        for recorder in self._recorders():
            recorder.clip_end(call)

    def _on_autocast(self, dtype: str) -> None:
        if dtype not in self._autocast:
            self._autocast.add(dtype)
            self._sink.event("autocast", dtype=dtype, step=self.step)

    def _on_step_begin(self, stepping: Optimizer, closure: bool) -> None:
        watched = self._find(stepping)
        if watched is None:
            return
        watched.stepped = True
        watched.recorder.refresh()
        if watched.laid_out is not watched.recorder.roster:
            self._lay_out(watched, stepping)
        count = watched.recorder.count()
        if watched.attempt < 0 or count != watched.count:  # the first step, or a checkpoint was loaded since the last
            watched.attempt, watched.step = self._sink.attempt(watched.index, count)
            watched.count = count
            if watched.step == 1:
                self._sink.step(watched.index, watched.recorder.weights(watched.attempt, watched.layout))
        else:
            watched.step += 1
        if watched.index == 0:
            self.step = watched.step
        watched.recorder.step_begin(watched.step, closure)

    def _on_step_end(self, stepping: Optimizer, skipped: bool = False) -> None:
        watched = self._watched.get(id(stepping))
        if watched is None:
            return
        recorder = watched.recorder
        try:
            if recorder.spoiled:
                watched.count = recorder.count()
                return
            record = recorder.step_end(watched.step, watched.attempt, watched.layout, skipped or scaler.found_inf(stepping))
            watched.count = recorder.count()
            self._sink.step(watched.index, record)
            self._faults = self._in_a_row = 0
        finally:
            recorder.begin_window()

    def _lay_out(self, watched: _Watched, stepping: Optimizer) -> None:
        self._names, self._roles = named_parameters(self._model), roles(self._model)
        flat = distributed.held_of(self._model)
        layout = optimizer.layout_of(stepping, self._names, self._roles, watched.index, self._exact_updates, flat)
        watched.layout = self._sink.layout(watched.index, layout)
        watched.laid_out = watched.recorder.roster
        watched.laid_out.sharded = any(tensor.shards > 1 for tensor in layout.tensors)
        if not watched.laid_out.on_host:
            self._note("unmeasured", optimizer=watched.index, why="parameters on a device", step=self.step)
            self._tell("the parameters are not on the CPU: this version records rates and step counts of such a run, no losses "
                       "and no tensors")  # fmt: skip

    def _find(self, stepping: Optimizer) -> _Watched | None:
        found = self._watched.get(id(stepping))
        if found is None and self._adopts and any(id(p) in self._names for p in optimizer.parameters_of(stepping)):
            return self._adopt(stepping)
        return found

    def _adopt(self, found: Optimizer) -> _Watched:
        """Watch from now on; what was seen before is this optimizer's if nothing of it can be another's."""
        recorder = StepRecorder(found, self._every, self._exact_updates, self._pending)
        early, self._early = self._early, None
        if early is not None:
            held = {id(p) for p in recorder.parameters}
            if all(id(p) in held for p in early.parameters if p.grad is not None):
                recorder.take_over(early)
        return self._watch(found, recorder)

    def _watch(self, found: Optimizer, recorder: StepRecorder) -> _Watched:
        return self._watched.setdefault(id(found), _Watched(len(self._watched), recorder))
