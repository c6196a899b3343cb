"""Brings the numbers of a step to the host: all of them at once, and only where that costs no wait."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch

from stabkit.hooks import ring
from stabkit.metric import Array

__all__ = ["Batch", "Later", "Number", "host_number", "on_host", "reachable"]

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
        self._flights: dict[torch.device, ring.Flight] = {}
        self._order: list[tuple[torch.device | None, int]] = []  # of each tensor: the device it comes from, and its size

    def add(self, number: Number) -> Later:
        """Ask for a number."""
        if not isinstance(number, torch.Tensor):
            return Later(number)
        later = Later()
        self.then(number, lambda values: setattr(later, "value", float(values[0])))
        return later

    def then(self, tensor: torch.Tensor, use: Callable[[Array], None]) -> None:
        """Hand the elements of a tensor on, as float64 [numel], once they are here; NaN from where nothing is carried."""
        if reachable(tensor):
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
        self._order = [(None if on_host(tensor) else tensor.device, tensor.numel()) for tensor in self._tensors]
        groups: dict[torch.device | None, list[torch.Tensor]] = {}
        for (device, _), tensor in zip(self._order, self._tensors, strict=True):
            groups.setdefault(device, []).append(tensor)
        self._here = _together(groups.pop(None, []))
        for device, tensors in groups.items():
            flight = ring.depart(tensors)
            if flight is None or device is None:
                self.lost = True
            else:
                self._flights[device] = flight
        self._tensors = []
        if self.lost:
            for flight in self._flights.values():
                flight.give_up()

    def arrived(self) -> bool:
        """Whether everything that was sent for is here."""
        return all(flight.arrived() for flight in self._flights.values())

    def settle(self) -> None:
        """Do what was to be done with everything; waits for what has not arrived."""
        numbers: dict[torch.device | None, Array] = {device: flight.land() for device, flight in self._flights.items()}
        numbers[None] = self._here
        begin = dict.fromkeys(numbers, 0)
        for (device, size), use in zip(self._order, self._uses, strict=True):
            use(numbers[device][begin[device] : begin[device] + size])
            begin[device] += size
        for act in self._afterwards:
            act()
        self._uses, self._afterwards, self._flights = [], [], {}

    def fetch(self) -> None:
        """Send and settle, where waiting does no harm."""
        self.send()
        self.settle()


def on_host(tensor: torch.Tensor) -> bool:
    """Whether a tensor can be read without making the training wait."""
    return tensor.is_cpu


def reachable(tensor: torch.Tensor) -> bool:
    """Whether its numbers can be had at all."""
    return on_host(tensor) or ring.carries(tensor)


def _together(tensors: Sequence[torch.Tensor]) -> Array:
    """The elements of tensors on the host in a row."""
    if tensors and all(tensor.dim() == 0 and tensor.dtype is torch.float64 for tensor in tensors):
        return torch.stack(list(tensors)).numpy()  # as nearly always: a loss, a norm
    rows = [tensor.to(torch.float64).reshape(-1) for tensor in tensors]
    return torch.cat(rows).numpy() if rows else np.empty(0)


def host_number(tensor: torch.Tensor) -> float:
    """The value of a counter or hyperparameter that is kept as a tensor on the CPU; NaN where it lies on a device."""
    return tensor.item() if on_host(tensor) and tensor.numel() == 1 and not tensor.is_complex() else math.nan
