"""Brings the numbers of a step to the host: all of them at once, and only where that costs no wait."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch

from stabkit.metric import Array

__all__ = ["Batch", "Later", "Number", "host_number"]

Number: TypeAlias = "float | torch.Tensor"
"""A number that is known already, or a tensor of one element that holds it."""


class Later:
    """A number that will be known once its batch was fetched.

    Attributes:
        value: The number; NaN before, and for one that lies on a device.
    """

    __slots__ = ("value",)

    def __init__(self, value: float = math.nan) -> None:
        self.value = value


class Batch:
    """Collects what a step has to know on the host, for one transfer at its end, and what is to be done with it then."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._uses: list[Callable[[Array], None]] = []
        self._afterwards: list[Callable[[], None]] = []

    def add(self, number: Number) -> Later:
        """Ask for a number."""
        if not isinstance(number, torch.Tensor):
            return Later(number)
        later = Later()
        self.then(number, lambda values: setattr(later, "value", float(values[0])))
        return later

    def then(self, tensor: torch.Tensor, use: Callable[[Array], None]) -> None:
        """Hand the elements of a tensor on, as float64 [numel], once they are here."""
        self._tensors.append(tensor.detach())
        self._uses.append(use)

    def afterwards(self, act: Callable[[], None]) -> None:
        """Do this once everything is here; in the order of asking."""
        self._afterwards.append(act)

    def absorb(self, other: Batch) -> None:
        """Take over what another batch was asked for."""
        self._tensors += other._tensors
        self._uses += other._uses
        self._afterwards += other._afterwards

    def fetch(self) -> None:
        """Bring everything, and do what was to be done with it."""
        for values, use in zip(_brought(self._tensors), self._uses, strict=True):
            use(values)
        for act in self._afterwards:
            act()
        self.__init__()  # type: ignore[misc]  # the tensors and what refers to the step are let go


def _brought(tensors: Sequence[torch.Tensor]) -> list[Array]:
    """The elements of each tensor, in one transfer; NaN for those on a device, where it would make training wait."""
    here = [tensor.to(torch.float64).reshape(-1) for tensor in tensors if tensor.is_cpu]
    elements: Array = torch.cat(here).numpy() if here else np.empty(0)
    found, begin = [], 0
    for tensor in tensors:
        if tensor.is_cpu:
            found.append(elements[begin : begin + tensor.numel()])
            begin += tensor.numel()
        else:
            found.append(np.full(tensor.numel(), np.nan))
    return found


def host_number(tensor: torch.Tensor) -> float:
    """The value of a counter or hyperparameter that is kept as a tensor on the CPU; NaN where it lies on a device."""
    return tensor.item() if tensor.is_cpu and tensor.numel() == 1 and not tensor.is_complex() else math.nan
