"""Carries numbers from a device to the host without a wait: a copy into pinned memory and an event that says when it is done.

Everything happens on the thread that trains and on its current stream. An event is asked, never waited for, but at the very
end. Where every slot is still on its way, what was to be carried is lost, and counted by whoever sent it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stabkit.metric import Array

__all__ = ["Flight", "carries", "depart", "release"]

_SLOTS = 8
_free: dict[torch.device, list[tuple[torch.Tensor, Any]]] = {}
_made: dict[torch.device, int] = {}


class Flight:
    """Numbers on their way.

    Args:
        device: Where they come from.
        slot: Pinned memory and an event; given back on landing.
        size: How many numbers.
    """

    def __init__(self, device: torch.device, slot: tuple[torch.Tensor, Any], size: int) -> None:
        self._device, self._slot, self._size = device, slot, size

    def arrived(self) -> bool:
        """Whether they are here; asking does not wait."""
        return bool(self._slot[1].query())

    def land(self) -> Array:
        """The numbers, float64 [size]; waits where they have not arrived yet."""
        pinned, event = self._slot
        event.synchronize()
        found: Array = np.array(pinned[: self._size].numpy())
        _free.setdefault(self._device, []).append(self._slot)
        return found

    def give_up(self) -> None:
        """Nobody will come for them. The memory can be used again: what is copied later on the stream is later."""
        _free.setdefault(self._device, []).append(self._slot)


def carries(tensor: torch.Tensor) -> bool:
    """Whether numbers can be sent from where this tensor lies."""
    return tensor.is_cuda


def depart(tensors: Sequence[torch.Tensor]) -> Flight | None:
    """Send the elements of tensors that lie on one device; None where every slot is taken."""
    numbers = torch.cat([tensor.to(torch.float64).reshape(-1) for tensor in tensors])
    slot = _slot(numbers.device, numbers.numel())
    if slot is None:
        return None
    pinned, event = slot
    pinned[: numbers.numel()].copy_(numbers, non_blocking=True)
    event.record(torch.cuda.current_stream(numbers.device))
    return Flight(numbers.device, slot, numbers.numel())


def release() -> None:
    """Give the pinned memory back."""
    _free.clear()
    _made.clear()


def _slot(device: torch.device, size: int) -> tuple[torch.Tensor, Any] | None:
    """Memory for so many numbers. Making pinned memory may wait, so each slot is made once, with room to spare."""
    free = _free.setdefault(device, [])
    for place, (pinned, _) in enumerate(free):
        if pinned.numel() >= size:
            return free.pop(place)
    if free:  # all too small: the first steps, which put formulas to the proof, carry the most
        free.pop()
        _made[device] = _made.get(device, 1) - 1
    if _made.get(device, 0) >= _SLOTS:
        return None
    _made[device] = _made.get(device, 0) + 1
    return torch.empty(2 * size, dtype=torch.float64, device="cpu", pin_memory=True), torch.cuda.Event()
