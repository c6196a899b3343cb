"""Brings the numbers of a step to the host: all of them at once, and only where that costs no wait."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["Batch", "Later", "Number", "host_number", "to_host"]

Number = float | torch.Tensor
"""A number that is known already, or a tensor of one element that holds it."""


class Later:
    """A number that will be known once its batch was fetched.

    Attributes:
        value: The number; NaN before, and for one that lies on a device.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = math.nan


class Batch:
    """Collects what a step has to know on the host, for one transfer at its end."""

    def __init__(self) -> None:
        self._numbers: list[Number] = []
        self._promised: list[Later] = []

    def add(self, number: Number) -> Later:
        """Ask for a number."""
        self._numbers.append(number)
        self._promised.append(Later())
        return self._promised[-1]

    def fetch(self) -> None:
        """Bring all of them."""
        for later, value in zip(self._promised, to_host(self._numbers), strict=True):
            later.value = value
        self._numbers, self._promised = [], []


def to_host(numbers: Sequence[Number]) -> list[float]:
    """The values of tensors of one element, in one transfer; NaN for those on a device, where it would make training wait."""
    values = [math.nan if isinstance(number, torch.Tensor) else number for number in numbers]
    here = [i for i, number in enumerate(numbers) if isinstance(number, torch.Tensor) and number.is_cpu]
    if here:
        tensors = [numbers[i].detach().to(torch.float64).reshape(()) for i in here]  # type: ignore[union-attr]
        for i, value in zip(here, torch.stack(tensors).tolist(), strict=True):
            values[i] = value
    return values


def host_number(tensor: torch.Tensor) -> float:
    """The value of a counter or hyperparameter that is kept as a tensor on the CPU; NaN where it lies on a device."""
    return tensor.item() if tensor.is_cpu and tensor.numel() == 1 and not tensor.is_complex() else math.nan
