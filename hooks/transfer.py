"""Brings the numbers of a step to the host: all of them at once, and only where that costs no wait."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch

from stabkit.hooks import ring
from stabkit.metric import Array

__all__ = ["Batch", "Later", "Number", "host_number", "on_host"]

Number: TypeAlias = "float | torch.Tensor"
"""A number that is known already, or a tensor of one element that holds it."""


class Later:
    """A number that will be known once its batch was fetched.

    Attributes:
        value: The number; NaN before.
    """

    __slots__ = ("value",)

    def __init__(self, value: float = math.nan) -> None:
        self.value = value


class Batch:
    """Collects what a step has to know on the host, for one transfer at its end, and what is to be done with it then.

    Attributes:
        lost: Whether there was no room for the transfer: the numbers will never come.
    """

    def __init__(self) -> None:
        self.lost = False
        self._tensors: list[torch.Tensor] = []
        self._uses: list[Callable[[Array], None]] = []
        self._afterwards: list[Callable[[], None]] = []
        self._here: Array = np.empty(0)
        self._flight: ring.Flight | None = None
        self._order: list[tuple[bool, int]] = []  # of each tensor: whether it is on the host, and its size

    def add(self, number: Number) -> Later:
        """Ask for a number."""
        if not isinstance(number, torch.Tensor):
            return Later(number)
        later = Later()
        self.then(number, lambda values: setattr(later, "value", float(values[0])))
        return later

    def then(self, tensor: torch.Tensor, use: Callable[[Array], None]) -> None:
        """Hand the elements of a tensor on, as float64 [numel], once they are here; NaN from where nothing is carried."""
        if on_host(tensor) or ring.carries(tensor):
            self._tensors.append(tensor.detach())
            self._uses.append(use)
        else:
            self._afterwards.append(lambda: use(np.full(tensor.numel(), np.nan)))

    def afterwards(self, act: Callable[[], None]) -> None:
        """Do this once everything is here; in the order of asking."""
        self._afterwards.append(act)

    def absorb(self, other: Batch) -> None:
        """Take over what another batch was asked for."""
        self._tensors += other._tensors
        self._uses += other._uses
        self._afterwards += other._afterwards

    def send(self) -> None:
        """Bring what is on the host, in one transfer, and send for what is on a device; the tensors are let go."""
        away = [tensor for tensor in self._tensors if not on_host(tensor)]
        self._here = _together([tensor for tensor in self._tensors if on_host(tensor)])
        self._flight = ring.depart(away) if away else None
        self.lost = bool(away) and self._flight is None
        self._order = [(on_host(tensor), tensor.numel()) for tensor in self._tensors]
        self._tensors = []

    def arrived(self) -> bool:
        """Whether everything that was sent for is here."""
        return self._flight is None or self._flight.arrived()

    def settle(self) -> None:
        """Do what was to be done with everything; waits for what has not arrived."""
        there, begin_here, begin_there = self._flight.land() if self._flight else np.empty(0), 0, 0
        for (is_here, size), use in zip(self._order, self._uses, strict=True):
            if is_here:
                use(self._here[begin_here : begin_here + size])
                begin_here += size
            else:
                use(there[begin_there : begin_there + size])
                begin_there += size
        for act in self._afterwards:
            act()
        self._uses, self._afterwards, self._flight = [], [], None

    def fetch(self) -> None:
        """Send and settle, where waiting does no harm."""
        self.send()
        self.settle()


def on_host(tensor: torch.Tensor) -> bool:
    """Whether a tensor can be read without making the training wait."""
    return tensor.is_cpu


def _together(tensors: Sequence[torch.Tensor]) -> Array:
    """The elements of tensors on the host in a row."""
    rows = [tensor.to(torch.float64).reshape(-1) for tensor in tensors]
    return torch.cat(rows).numpy() if rows else np.empty(0)


def host_number(tensor: torch.Tensor) -> float:
    """The value of a counter or hyperparameter that is kept as a tensor on the CPU; NaN where it lies on a device."""
    return tensor.item() if on_host(tensor) and tensor.numel() == 1 and not tensor.is_complex() else math.nan
