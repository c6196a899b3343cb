"""Finds out whose gradients those were: with `optimizer=None`, backward is seen before the optimizer that will use it.

An `EarlyRecorder` follows all of the model's parameters. At the first step of an optimizer that was not known, what belongs to
that optimizer's parameters is handed to its own recorder. An optimizer that takes the place of a watched one (made anew for a
second phase, or to drop its moments) gets what was seen for its predecessor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks.distributed import Pending
from stabkit.hooks.gradients import is_zero
from stabkit.hooks.loss import Root
from stabkit.hooks.recorder import StepRecorder
from stabkit.hooks.signatures import changed, signatures
from stabkit.hooks.transfer import Number
from stabkit.hooks.wiring import Wiring

__all__ = ["EarlyRecorder", "is_shell", "replaces"]


class _Undecided:
    """Stands in for the optimizer that will be adopted, until its first step shows which it is."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self.param_groups = [{"params": parameters}]
        self.state: dict[torch.Tensor, Any] = {}


class EarlyRecorder(StepRecorder):
    """Sees backward and clipping for optimizers that have not stepped yet, and remembers whom each call reached.

    Args:
        parameters: The model's.
        pending: Where to look for gradients that are kept back.
    """

    def __init__(self, parameters: list[torch.Tensor], pending: Pending) -> None:
        self._reached: list[set[int]] = []  # the parameters whose gradients each backward call of the window went into
        self._unheld = parameters
        self._first = True  # whether nothing was handed over yet
        super().__init__(_Undecided(parameters), pending=pending)  # type: ignore[arg-type]

    @property
    def awake(self) -> bool:
        """Whether a parameter that is trained is still in no optimizer that has stepped."""
        return any(p.requires_grad for p in self._unheld)

    def begin_window(self) -> None:
        """Forget what was seen."""
        super().begin_window()
        self._reached = []

    def backward_begin(self) -> None:
        """A backward call begins: gradients dropped since the last one were nobody's."""
        super().backward_begin()
        if self._reached:
            gone = [i for i, p in enumerate(self.parameters) if p.grad is None or is_zero(p.grad)]
            self._ledger.forget(gone)
            kept = [(call, reached.difference(gone)) for call, reached in zip(self._window.calls, self._reached, strict=True)]
            kept = [(call, reached) for call, reached in kept if reached]
            self._window.calls, self._reached = [call for call, _ in kept], [reached for _, reached in kept]

    def backward_end(self, roots: list[Root], finished: bool, scale: Number | None = None) -> None:
        """A backward call is over."""
        before, calls = self._at_backward, len(self._window.calls)
        super().backward_end(roots, finished, scale)
        if len(self._window.calls) > calls:
            self._reached.append(set(changed(before, signatures(self.parameters))))

    def hand_over(self, recorder: StepRecorder, known: Iterable[StepRecorder]) -> None:
        """Give a recorder what was seen of its parameters.

        Args:
            recorder: Of an optimizer that is about to take its first step.
            known: All recorders, this one among them.
        """
        mine = {id(p) for p in recorder.parameters}
        places = {i for i, p in enumerate(self.parameters) if id(p) in mine}
        calls = [call for call, reached in zip(self._window.calls, self._reached, strict=True) if reached & places]
        recorder.take_over(self, calls)
        if not self._first:
            recorder.wiring = Wiring()  # what the loop did was done for the others too
        self._first = False
        held = {id(p) for other in known for p in other.parameters}
        self._unheld = [p for p in self.parameters if id(p) not in held]
        if not self.awake:
            self.begin_window()  # what happens until it wakes is not seen


def replaces(later: Iterable[torch.Tensor], earlier: Iterable[torch.Tensor]) -> bool:
    """Whether an optimizer of the first parameters can stand in for one of the second: it trains all that are trained."""
    held = {id(p) for p in later}
    trained = [p for p in earlier if p.requires_grad]
    return bool(trained) and all(id(p) in held for p in trained)


def is_shell(stepping: Any) -> bool:
    """Whether an optimizer only steps another that it keeps (as a lookahead does): that one will be seen by itself."""
    kept = list(getattr(stepping, "__dict__", {}).values())
    kept += [item for value in kept if isinstance(value, (list, tuple)) for item in value]
    return any(isinstance(value, Optimizer) for value in kept)
