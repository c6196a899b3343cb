"""The optimizers that are watched: which step belongs to whom, and what each of them is called in the log."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.optim.optimizer import Optimizer

from stabkit.hooks import distributed, optimizer
from stabkit.hooks.adoption import EarlyRecorder, is_shell, replaces
from stabkit.hooks.cadence import Cadence
from stabkit.hooks.names import named_parameters, parameters_in, roles
from stabkit.hooks.ownership import Ownership
from stabkit.hooks.recorder import StepRecorder
from stabkit.hooks.roster import parameters_of
from stabkit.hooks.watched import Watched
from stabkit.runlog import Layout

__all__ = ["Watchlist"]


class Watchlist:
    """The optimizers of one model.

    Args:
        model: A module or a dict of modules.
        optimizers: Those to watch; empty to adopt whichever steps the model's parameters.
        cadence: Makes what says which steps of an optimizer have their tensors measured.
        exact_updates: Measure the applied update from a copy of the weights.
        note: Puts a note into the log.

    Attributes:
        early: Sees backward for optimizers that are yet to be adopted; None where none is.
        ownership: Which parameters belong to any optimizer.
    """

    def __init__(
        self,
        model: Any,
        optimizers: Sequence[Any],
        cadence: Callable[[], Cadence],
        exact_updates: bool,
        note: Callable[..., None],
    ) -> None:
        self._model, self._cadence, self._exact_updates, self._note = model, cadence, exact_updates, note
        self._names, self._roles = named_parameters(model), roles(model)
        self._pending = distributed.Pending(model)
        self._adopts = not optimizers
        self.early = EarlyRecorder(parameters_in(model), self._pending) if self._adopts else None
        self.ownership = Ownership(parameters_in(model), self._names)
        self._watched: dict[int, Watched] = {}
        self._replaced: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        for o in optimizers:
            self._add(optimizer.unwrap(o))

    def __iter__(self) -> Iterator[Watched]:
        return iter(self._watched.values())

    def ids(self) -> list[int]:
        """The ids of the optimizers."""
        return list(self._watched)

    def let_go(self) -> None:
        """Keep nothing of the user's."""
        self._watched.clear()
        self.ownership = Ownership((), {})
        self._model = self.early = None
        self._pending = distributed.Pending({})

    def recorders(self) -> list[StepRecorder]:
        """Whoever is to hear of backward and clipping."""
        found = [watched.recorder for watched in self]
        return [*found, self.early] if self.early and self.early.awake else found

    def owns_parameters(self) -> bool:
        """Whether the optimizers hold at least one parameter of the model; True while one is still to be adopted."""
        held = {id(p) for watched in self for p in watched.recorder.parameters}
        return self._adopts or bool(held & set(self._names))

    def known(self, stepping: Any) -> Watched | None:
        """What is kept of an optimizer, perhaps inside a wrapper, that is watched already."""
        return self._watched.get(id(optimizer.unwrap(stepping)))

    def find(self, stepping: Any) -> Watched | None:
        """The same; one that should be watched is from now on."""
        stepping = optimizer.unwrap(stepping)
        found = self._watched.get(id(stepping))
        if found is not None or is_shell(stepping):
            return found
        parameters = parameters_of(stepping)
        earlier = next((w for w in self if replaces(parameters, w.recorder.parameters)), None)
        if earlier is not None or (self._adopts and any(id(p) in self._names for p in parameters)):
            return self._adopt(stepping, earlier)
        return None

    def layout(self, watched: Watched) -> Layout:
        """The layout of its records as the model is now."""
        self._names, self._roles = named_parameters(self._model), roles(self._model)
        missing, flat = watched.recorder.trust.missing(self._exact_updates), distributed.held_of(self._model)
        layout = optimizer.layout_of(
            watched.recorder.optimizer, self._names, self._roles, watched.index, missing, flat
        )
        watched.laid_out = watched.recorder.roster
        watched.laid_out.sharded = any(tensor.shards > 1 for tensor in layout.tensors)
        self.ownership.hold(watched.recorder.parameters)
        return layout

    def unreached(self, watched: Watched, last: bool) -> list[str]:
        """Names of its parameters that no gradient has reached (see `Reach`)."""
        return watched.unreached(self._names, last)

    def name_of(self, watched: Watched, place: int) -> str:
        """The name of the tensor at a place of its roster."""
        parameter = watched.recorder.parameters[watched.recorder.roster.owners[place]]
        return self._names.get(id(parameter), (f"parameter {place}",))[0]

    def _adopt(self, found: Optimizer, earlier: Watched | None) -> Watched:
        """Watch an optimizer from now on, in the place of the one it was made to replace; what was seen before is its own."""
        recorder = StepRecorder(found, self._cadence(), self._exact_updates, self._pending)
        if self.early is not None and self.early.awake:
            self.early.hand_over(recorder, [*(watched.recorder for watched in self), recorder])
        elif earlier is not None:
            recorder.take_over(earlier.recorder)
        if earlier is None or found in self._replaced:  # one that steps again after all was not replaced: they take turns
            return self._add(found, recorder)
        del self._watched[id(earlier.recorder.optimizer)]  # its moments must not live longer than the user wants
        self._replaced.add(earlier.recorder.optimizer)
        self._note("replaced", optimizer=earlier.index, by=type(found).__name__, step=earlier.step)
        self._watched[id(found)] = Watched(earlier.index, recorder)
        self._watched = dict(sorted(self._watched.items(), key=lambda item: item[1].index))
        return self._watched[id(found)]

    def _add(self, found: Optimizer, recorder: StepRecorder | None = None) -> Watched:
        recorder = recorder or StepRecorder(found, self._cadence(), self._exact_updates, self._pending)
        return self._watched.setdefault(id(found), Watched(len(self._watched), recorder))
