"""The plain version: torch operations in float64, for any dtype, layout of memory and device.

Tensors are walked in pieces small enough for the temporaries to stay in cache. Every operation acts on float64 (or
bool), which autocast leaves alone, and nothing is created without an explicit dtype and device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stabkit.hooks.statistics import rows
from stabkit.hooks.transfer import Batch, on_host
from stabkit.metric import Array

if TYPE_CHECKING:
    from stabkit.hooks.statistics import AdamStep, TensorState

__all__ = ["entries", "measure_after", "measure_before", "measure_move", "measure_size"]

PIECE = 32_000
"""Elements converted to float64 at a time: below the 32,768 from which most operations start threads, which on a busy
machine would wait for each other forty times per piece."""
PIECE_ON_DEVICE = 1_000_000
"""On a device a piece costs some forty kernel launches, and 8 MB for each temporary."""


def measure_before(state: TensorState, step: AdamStep, batch: Batch, out: Array) -> None:
    """Fills the BEFORE_COLUMNS of one tensor once the batch is fetched."""
    with torch.no_grad():
        tensors = _side_by_side(state.param, state.grad, state.exp_avg)
        found = [rows.before(*piece) for piece in _pieces(tensors)]
        summed = torch.stack(found).sum(dim=0) if found else torch.zeros(3, dtype=torch.float64)
    _, g, m = (tensor is not None for tensor in tensors)
    sign = -1.0 if step.maximize else 1.0

    def fill(values: Array) -> None:
        out[:] = values[0], sign * values[1] if g and m else math.nan, values[2] if m else math.nan

    batch.then(summed, fill)


def measure_after(state: TensorState, step: AdamStep, batch: Batch, out: Array) -> None:
    """Fills the AFTER_COLUMNS of one tensor once the batch is fetched."""
    with torch.no_grad():
        tensors = _side_by_side(state.param, state.grad, state.exp_avg, state.exp_avg_sq, state.max_exp_avg_sq, state.before)
        count = step.count if state.count is None else state.count.detach().to(torch.float64)
        taken = rows.Taken(step, count, step.lr if state.lr is None else state.lr.detach().to(torch.float64))
        found = [rows.after(taken, *piece) for piece in _pieces(tensors)]
        merged = rows.merge(found) if found else torch.tensor(rows.OF_NOTHING, dtype=torch.float64)
    present = [tensor is not None for tensor in tensors]
    counted = batch.add(count)
    batch.then(merged, lambda values: out.__setitem__(slice(None), rows.strike_out(values, step.beta2, counted.value, present)))


def entries(tensor: Tensor) -> Tensor:
    """What a tensor holds: a dense one itself, a sparse one its entries, each place once (`coalesce` copies).

    A sparse one on a device stays as it is, for `coalesce` would make training wait.
    """
    sparse = tensor.layout is torch.sparse_coo and on_host(tensor)
    return tensor.detach().coalesce().values() if sparse else tensor.detach()


def measure_size(tensor: Tensor, batch: Batch, out: Array, zeros: int = 0) -> None:
    """Fills sum of squares, absmax, count of nonfinite elements and of zeros, once the batch is fetched.

    Args:
        tensor: The tensor.
        batch: The step's batch.
        out: float64 [4].
        zeros: How many zeros it has that are not stored.
    """
    with torch.no_grad():
        (x,) = _side_by_side(tensor)
        found = [
            torch.cat([(piece * piece).sum(dim=1), *rows.magnitude(piece), rows.count(piece == 0)])
            for (piece,) in _pieces([x])
            if piece is not None
        ]
        total = torch.zeros(4, dtype=torch.float64)
        if found:
            table = torch.stack(found)
            total = table.sum(dim=0)
            total[1] = table[:, 1].amax()
    extra = (0.0, 0.0, 0.0, zeros if x is not None else math.nan)
    batch.then(total, lambda values: out.__setitem__(slice(None), values + extra if x is not None else math.nan))


def measure_move(param: Tensor, before: Tensor, batch: Batch, out: Array) -> None:
    """Fills Σ(p - before)² and Σ before (p - before), once the batch is fetched."""
    with torch.no_grad():
        found = []
        for p, b in _pieces(_side_by_side(param.detach(), before)):
            if p is not None and b is not None:
                moved = p - b
                found.append(torch.stack([(moved * moved).sum(), (b * moved).sum()]))
        total = torch.stack(found).sum(dim=0) if found else torch.zeros(2, dtype=torch.float64)
    batch.then(total, lambda values: out.__setitem__(slice(None), values))


def _side_by_side(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors as real, dense ones of equal shape; sparse ones become None."""
    real: list[Tensor | None] = []
    for tensor in tensors:
        if tensor is None or tensor.layout is not torch.strided:
            real.append(None)
        else:
            real.append(torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor)
    shapes = {tuple(tensor.shape) for tensor in real if tensor is not None}
    if len(shapes) > 1:
        raise ValueError(f"parameter, gradient and optimizer state differ in shape: {sorted(shapes)}")
    return real


def _pieces(tensors: Sequence[Tensor | None]) -> Iterator[list[Tensor | None]]:
    """The same stretch of all tensors at a time, float64 [1, elements]. Cut by index, not by address: any strides will do."""
    first = tensors[0]
    if first is None or first.numel() == 0:
        return
    piece = PIECE if first.is_cpu else PIECE_ON_DEVICE
    if first.numel() <= piece:
        yield [None if t is None else _row(t) for t in tensors]
        return
    dim = next(d for d, size in enumerate(first.shape) if size > 1)
    size = first.shape[dim]
    length = max(1, piece * size // first.numel())
    for start in range(0, size, length):
        stop = min(size, start + length)
        yield from _pieces([None if t is None else t.narrow(dim, start, stop - start) for t in tensors])


def _row(piece: Tensor) -> Tensor:
    return piece.to(torch.float64, memory_format=torch.contiguous_format).reshape(1, -1)
