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

from stabkit.hooks.transfer import Batch, Number, on_host
from stabkit.metric import Array

if TYPE_CHECKING:
    from stabkit.hooks.statistics import AdamStep, TensorState

__all__ = ["entries", "measure_after", "measure_before", "measure_move", "measure_size"]

PIECE = 32_000
"""Elements converted to float64 at a time: below the 32,768 from which most operations start threads, which on a busy
machine would wait for each other forty times per piece."""
PIECE_ON_DEVICE = 1_000_000
"""On a device a piece costs some forty kernel launches, and 8 MB for each temporary."""

_OF_NOTHING = [0.0] * 6 + [math.inf, -math.inf] + [0.0] * 8
"""The AFTER_COLUMNS of a tensor without elements, before what cannot be known is struck out."""

# Sums add up over pieces; these do not. Places in AFTER_COLUMNS.
_MAXIMA = (1, 7, 10, 13)
_MINIMA = (6,)


def measure_before(state: TensorState, step: AdamStep, batch: Batch, out: Array) -> None:
    """Fills the BEFORE_COLUMNS of one tensor once the batch is fetched."""
    with torch.no_grad():
        tensors = _side_by_side(state.param, state.grad, state.exp_avg)
        rows = [_before(*piece) for piece in _pieces(tensors)]
        summed = torch.stack(rows).sum(dim=0) if rows else torch.zeros(3, dtype=torch.float64)
    _, g, m = (tensor is not None for tensor in tensors)
    sign = -1.0 if step.maximize else 1.0

    def fill(values: Array) -> None:
        out[:] = values[0], sign * values[1] if g and m else math.nan, values[2] if m else math.nan

    batch.then(summed, fill)


def measure_after(state: TensorState, step: AdamStep, batch: Batch, out: Array) -> None:
    """Fills the AFTER_COLUMNS of one tensor once the batch is fetched."""
    with torch.no_grad():
        tensors = _side_by_side(state.param, state.grad, state.exp_avg, state.exp_avg_sq, state.max_exp_avg_sq, state.before)
        count = step.count if state.count is None else state.count.to(torch.float64)
        rows = [_after(step, count, *piece) for piece in _pieces(tensors)]
        merged = _merge(torch.stack(rows)) if rows else torch.tensor(_OF_NOTHING, dtype=torch.float64)
    present = [tensor is not None for tensor in tensors]
    counted = batch.add(count)
    batch.then(merged, lambda values: out.__setitem__(slice(None), _drop_unknown(values, step.beta2, counted.value, present)))


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
        rows = [
            torch.stack([(piece * piece).sum(), *_magnitude(piece), _count(piece == 0)])
            for (piece,) in _pieces([x])
            if piece is not None
        ]
        total = torch.zeros(4, dtype=torch.float64)
        if rows:
            table = torch.stack(rows)
            total = table.sum(dim=0)
            total[1] = table[:, 1].amax()
    extra = (0.0, 0.0, 0.0, zeros if x is not None else math.nan)
    batch.then(total, lambda values: out.__setitem__(slice(None), values + extra if x is not None else math.nan))


def measure_move(param: Tensor, before: Tensor, batch: Batch, out: Array) -> None:
    """Fills Σ(p - before)² and Σ before (p - before), once the batch is fetched."""
    with torch.no_grad():
        rows = []
        for p, b in _pieces(_side_by_side(param.detach(), before)):
            if p is not None and b is not None:
                moved = p - b
                rows.append(torch.stack([(moved * moved).sum(), (b * moved).sum()]))
        total = torch.stack(rows).sum(dim=0) if rows else torch.zeros(2, dtype=torch.float64)
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
    """The same stretch of all tensors at a time, in float64. Cutting by index, not by address, allows any strides."""
    first = tensors[0]
    if first is None or first.numel() == 0:
        return
    piece = PIECE if first.is_cpu else PIECE_ON_DEVICE
    if first.numel() <= piece:
        yield [None if t is None else t.to(torch.float64) for t in tensors]
        return
    dim = next(d for d, size in enumerate(first.shape) if size > 1)
    size = first.shape[dim]
    length = max(1, piece * size // first.numel())
    for start in range(0, size, length):
        stop = min(size, start + length)
        yield from _pieces([None if t is None else t.narrow(dim, start, stop - start) for t in tensors])


def _before(p: Tensor | None, g: Tensor | None, m: Tensor | None) -> Tensor:
    assert p is not None
    zero = torch.zeros((), dtype=torch.float64, device=p.device)
    return torch.stack(
        [
            (p * p).sum(),
            zero if g is None or m is None else (g * m).sum(),
            zero if m is None else (m * m).sum(),
        ]
    )


def _after(
    step: AdamStep,
    count: Number,
    p: Tensor | None,
    g: Tensor | None,
    m: Tensor | None,
    v: Tensor | None,
    vmax: Tensor | None,
    before: Tensor | None,
) -> Tensor:
    """The columns of one piece. What cannot be known is 0 here and struck out by `_drop_unknown`."""
    assert p is not None
    zero = torch.zeros((), dtype=torch.float64, device=p.device)
    grad, second, update = [zero] * 4, [zero] * 3, [zero] * 3
    rms = eps_count = zero
    if g is not None:
        grad = [(g * g).sum(), *_magnitude(g), _count(g == 0)]
    bias2 = 1 - step.beta2**count
    if v is not None and (isinstance(bias2, Tensor) or bias2 > 0):
        vhat = v / bias2
        d2 = vhat if vmax is None else vmax / bias2
        root = vhat.sqrt()
        second = [vhat.sum(), *_range(vhat)]
        eps_count = _count((v > 0) & (root < 10 * step.eps))
        if g is not None:
            rms = (g * g / d2.clamp(min=step.eps * step.eps)).sum()
        if m is not None:
            update = _update(step, count, p, m, root if vmax is None else d2.sqrt(), before)
    first = zero if m is None else (m * m).sum()
    applied = zero if before is None else ((p - before) * (p - before)).sum()
    return torch.stack([*grad, first, *second, rms, eps_count, *_magnitude(p), *update, applied])


def _update(step: AdamStep, count: Number, p: Tensor, m: Tensor, d: Tensor, before: Tensor | None) -> list[Tensor]:
    """Sum of squares and absmax of the intended update, and its dot product with the weights before it."""
    decay = step.lr * step.weight_decay if step.decoupled else 0.0
    adam = step.lr / (1 - step.beta1**count) * m / (d + step.eps)
    if before is None:
        # A tensor of one element, because dividing by a Python zero (lr * weight_decay = 1) is Inf all the same.
        before = (p + adam) / torch.full((), 1 - decay, dtype=torch.float64, device=p.device)
    update = -adam - decay * before
    return [(update * update).sum(), _magnitude(update)[0], (before * update).sum()]


def _magnitude(x: Tensor) -> tuple[Tensor, Tensor]:
    """Largest |x| over finite elements, and the count of the others."""
    size = x.abs()
    return size.nan_to_num(0.0, 0.0, 0.0).amax(), _count(~size.isfinite())


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest finite element; Inf and -Inf where there is none."""
    return x.nan_to_num(math.inf, math.inf, math.inf).amin(), x.nan_to_num(-math.inf, -math.inf, -math.inf).amax()


def _count(x: Tensor) -> Tensor:
    return x.sum(dtype=torch.float64)


def _merge(rows: Tensor) -> Tensor:
    merged = rows.sum(dim=0)
    for column in _MAXIMA:
        merged[column] = rows[:, column].amax()
    for column in _MINIMA:
        merged[column] = rows[:, column].amin()
    return merged


def _drop_unknown(row: Array, beta2: float, count: float, present: list[bool]) -> list[float]:
    """Puts NaN in the columns that lack a tensor they need, or the bias correction of v."""
    p, g, m, v, _, before = present
    vhat = v and count > 0 and beta2 < 1
    bounded = vhat and row[6] <= row[7]
    known = [g] * 4 + [m, vhat, bounded, bounded, vhat and g, vhat, p, p] + [vhat and m] * 3 + [before]
    return [value if p and known_here else math.nan for value, known_here in zip(row.tolist(), known, strict=True)]
