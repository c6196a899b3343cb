"""What the kernels of `triton_kernel` are told: where tensors lie and which numbers their step was taken with.

One row of 24 numbers of 64 bits for each tensor, in one stretch of memory that is read both as int64 and as float64:

| places | int64 |
|---|---|
| 0 to 5 | addresses of p, g, m, v, the largest v, the copy of p; 0 of one that is absent |
| 6, 7 | addresses of the count and the rate, where those are on the device (float32), else 0 |
| 8 to 10 | elements, the first of its chunks, how many chunks |
| 11 | unused |

| places | float64 |
|---|---|
| 12, 13 | rate and count, where they are on the host |
| 14, 15 | log(beta1), log(beta2) |
| 16 | eps |
| 17, 18 | weight decay that is decoupled, weight decay that is not |
| 19 | -1 where the optimizer maximizes, else 1 |
| 20 | beta1 |

The rows go to the device through pinned memory, without a wait, and only when they differ from those that are there.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from stabkit.hooks.statistics import AdamStep, TensorState

__all__ = ["CHUNK", "COLUMNS", "ROW", "WIDTHS", "Full", "Table", "columns_known", "numbers_of", "release", "table_for"]

ROW = 24
COLUMNS = 19
"""BEFORE_COLUMNS and AFTER_COLUMNS."""
CHUNK = 32_768
"""Elements of a tensor that one program sums up: 600 KB of partial sums for 124 million parameters."""

WIDTHS = {"before": (0, 3), "after": (3, 16), "step": (0, 19)}
"""Of each mode the first column and how many there are."""

_SLOTS = 8
_KEPT = 16
_tables: OrderedDict[Any, Table] = OrderedDict()


class Full(Exception):
    """Every slot of pinned memory is still on its way: the device is far behind."""


class Table:
    """The rows of some tensors on their device, the list of their chunks, and memory for the partial sums of those.

    Everything is allocated once, through torch. Work on it is ordered by the stream; where the stream changes, the new one
    waits for the old one, on the device.

    Args:
        device: Where the tensors lie.
        sizes: The number of elements of each.

    Attributes:
        chunks: int32 [chunks, 2]: the tensor of each, and which of its chunks it is.
        first: The first chunk of each tensor, and how many it has: int64 [tensors, 2].
    """

    def __init__(self, device: torch.device, sizes: Sequence[int]) -> None:
        many = -(-np.array(sizes, dtype=np.int64) // CHUNK)
        ends = np.cumsum(many)
        self.first = np.stack([ends - many, many], axis=1)
        which = np.repeat(np.arange(len(many)), many)
        chunks = np.stack([which, np.arange(len(which)) - (ends - many)[which]], axis=1).astype(np.int32)
        self._device, self._far = device, device.type != "cpu"
        self._slots: list[tuple[Tensor, Any]] = []
        self._next = 0
        self._chunks = self._near(chunks.shape, torch.int32)  # kept for as long as the copy may be under way
        self._chunks.numpy()[:] = chunks
        self.chunks = torch.empty_like(self._chunks, device=device, pin_memory=False).copy_(self._chunks, non_blocking=True)
        self._rows = torch.empty((len(many), ROW), dtype=torch.int64, device=device)
        self._told: bytes = b""
        self._stream: Any = None
        self._done: Any = torch.cuda.Event() if self._far else None

    @cached_property
    def partials(self) -> Tensor:
        """float64 [chunks, COLUMNS]."""
        return torch.empty((len(self.chunks), COLUMNS), dtype=torch.float64, device=self._device)

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """The rows as int64, and the same memory as float64."""
        return self._rows, self._rows.view(torch.float64)

    def enter(self) -> None:
        """Let the current stream wait for whatever was begun on another."""
        if self._far:
            stream = torch.cuda.current_stream(self._device)
            if self._stream is not None and stream != self._stream:
                stream.wait_event(self._done)
            self._stream = stream

    def leave(self) -> None:
        """All that needs the memory has been begun."""
        if self._far:
            self._done.record(self._stream)

    def tell(self, rows: NDArray[np.int64]) -> None:
        """Send rows to the device, unless they are there.

        Raises:
            Full: There is no memory to send them from.
        """
        now = rows.tobytes()
        if now == self._told:
            return
        near, event = self._slot()
        near.numpy()[:] = rows
        self._rows.copy_(near, non_blocking=True)
        if self._far:
            event.record(self._stream)
        self._told = now

    def _slot(self) -> tuple[Tensor, Any]:
        """Pinned memory that no copy reads from any more; asking does not wait."""
        for i in range(len(self._slots)):
            slot = self._slots[(self._next + i) % len(self._slots)]
            if not self._far or slot[1].query():
                self._next = (self._next + i + 1) % len(self._slots)
                return slot
        if len(self._slots) >= _SLOTS:
            raise Full("the device is far behind")
        self._slots.append((self._near(self._rows.shape, torch.int64), torch.cuda.Event() if self._far else None))
        return self._slots[-1]

    def _near(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=self._far)


def table_for(device: torch.device, sizes: tuple[int, ...], mode: Any) -> Table:
    """The table of tensors of these sizes, made at the first time of asking."""
    key = (device, sizes, mode)
    if key not in _tables:
        _tables[key] = Table(device, sizes)
        if len(_tables) > _KEPT:
            _tables.popitem(last=False)
    _tables.move_to_end(key)
    return _tables[key]


def release() -> None:
    """Give all memory back."""
    _tables.clear()


def numbers_of(step: AdamStep) -> tuple[float, ...]:
    """The float64 of a row."""
    apart, into = (step.weight_decay, 0.0) if step.decoupled else (0.0, step.weight_decay)
    return (
        *(step.lr, step.count, _log(step.beta1), _log(step.beta2), step.eps),
        *(apart, into, -1.0 if step.maximize else 1.0, step.beta1, 0.0, 0.0, 0.0),
    )


def known(mode: str, state: TensorState, step: AdamStep) -> list[bool]:
    """Which of all columns the tensors of a state suffice for."""
    g, m, v, copied = (t is not None for t in (state.grad, state.exp_avg, state.exp_avg_sq, state.before))
    v = v and step.beta2 < 1 and (state.count is not None or step.count > 0)
    before = [True, g and m, m]
    if mode == "step":
        weight = copied or (m and v)
        before = [weight, *[weight and g and m and step.beta1 > 0] * 2]
    return [*before, *[g] * 4, m, v, v, v, v and g, v, True, True, *[v and m] * 3, copied]


def columns_known(mode: str, states: Sequence[TensorState], steps: Sequence[AdamStep]) -> NDArray[np.bool_]:
    """The same of the columns of a mode: [tensors, columns]."""
    first, many = WIDTHS[mode]
    found = [known(mode, state, step) for state, step in zip(states, steps, strict=True)]
    return np.array(found, dtype=np.bool_)[:, first : first + many]


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf if beta == 0 else math.nan
