"""Finds parameters of the model that get gradients but that no optimizer holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks.roster import parameters_of

__all__ = ["Ownership"]

_STEPS = 20
"""After so many steps every optimizer of the loop is taken to have stepped: they may take turns."""


class Ownership:
    """Which parameters of the model the optimizers that were seen stepping hold.

    Args:
        parameters: Those of the model.
        names: All names of each, by id.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], names: dict[int, tuple[str, ...]]) -> None:
        self._parameters, self._names = parameters, names
        self._held: set[int] = set()
        self._optimizers: set[int] = set()
        self._in_need: set[int] = set()
        self._told = False

    def stepping(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step, watched or not."""
        if id(optimizer) not in self._optimizers:
            self._optimizers.add(id(optimizer))
            self.hold(parameters_of(optimizer))

    def hold(self, parameters: Iterable[torch.Tensor]) -> None:
        """These belong to an optimizer."""
        self._held |= {id(p) for p in parameters}

    def orphans(self, step: int, last: bool = False) -> list[str]:
        """Names of the parameters with gradients that are in no optimizer: told once, after some steps or at the end."""
        if self._told or step < 2:
            return []
        self._in_need |= {id(p) for p in self._parameters if p.requires_grad and p.grad is not None}
        if step < _STEPS and not last:
            return []
        self._told = True
        return [self._names[id(p)][0] for p in self._parameters if id(p) in self._in_need - self._held]
