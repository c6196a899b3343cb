"""An optimizer's own count of its steps, and what a change of it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks.distributed import local
from stabkit.hooks.statistics.native import finder
from stabkit.hooks.transfer import Number, host_number, on_host

__all__ = ["StepCount", "counts_of", "device_count"]

_NOTHING: Mapping[str, Any] = {}


def counts_of(optimizer: Optimizer, parameters: Sequence[torch.Tensor]) -> list[float]:
    """The optimizer's own count of steps of each parameter: 0 before the first, -1 where it keeps none."""
    if not optimizer.state:
        return [0.0] * len(parameters)
    if finder is not None and isinstance(optimizer.state, dict) and isinstance(parameters, list):
        found = np.empty(len(parameters))
        finder.counts(parameters, optimizer.state, found.ctypes.data)
        if not np.isnan(found).any():
            return found.tolist()  # type: ignore[no-any-return]
    state_of: Callable[..., Any] = optimizer.state.get
    return [_count(state_of(p, _NOTHING)) for p in parameters]


def _count(state: Any) -> float:
    if not isinstance(state, dict):  # a state written by hand may be the momentum itself
        return -1.0
    step = state.get("step")
    if step is None:  # LBFGS keeps a step length under "t"
        t = state.get("t")
        step = t if isinstance(t, int) else -1
    if isinstance(step, torch.Tensor):  # reading it on a device would make the training wait
        own = local(step)
        return host_number(own) if own is not None and on_host(own) and own.numel() == 1 else -1.0
    return float(step) if isinstance(step, (int, float)) else -1.0


def device_count(optimizer: Optimizer, largest: float) -> Number:
    """The largest of the counts; where the optimizer keeps them on a device, that of its first tensor, still there."""
    state = next(iter(optimizer.state.values()), None) if largest < 0 else None
    step = state.get("step") if isinstance(state, Mapping) else None
    return step if isinstance(step, torch.Tensor) and step.numel() == 1 else largest


class StepCount:
    """Follows an optimizer's count, and notices where it was given another state."""

    def __init__(self) -> None:
        self._state: Any = None
        self._first: Any = None
        self._first_count = -1.0
        self._count = -1

    def read(self, optimizer: Optimizer, parameters: Sequence[torch.Tensor], counts: list[float] | None = None) -> list[float]:
        """Read the count of every parameter; or take note of the `counts` where they were read just now."""
        counts = counts_of(optimizer, parameters) if counts is None else counts
        self._state = optimizer.state
        self._first = next(iter(self._state.values()), None)
        self._first_count = -1.0 if self._first is None else _count(self._first)
        self._count = int(max(counts, default=-1))
        return counts

    def now(self, optimizer: Optimizer, parameters: Sequence[torch.Tensor]) -> int:
        """The largest count, 0 before the first step, -1 where the optimizer keeps none.

        Everything is read again only where the state was replaced, or the count of its first tensor has changed; not even then
        where that was the largest and has grown by one, for no other can have grown by more.
        """
        first = next(iter(optimizer.state.values()), None)
        if first is None or first is not self._first or optimizer.state is not self._state:
            self.read(optimizer, parameters)
            return self._count
        count = _count(first)
        if 0 < count == self._first_count + 1 == self._count + 1:
            self._first_count, self._count = count, int(count)
        elif count != self._first_count:
            self.read(optimizer, parameters)
        return self._count
