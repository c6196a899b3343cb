"""The columns of rows of elements, in torch's own operations: what `reference` and `stacked` compute with.

Rows are float64 [rows, elements], so that autocast leaves them alone, and nothing is created without a dtype and a device.
Numbers of a step are those of Python or float64 [rows, 1]. What cannot be known is 0 here and struck out by `strike_out`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stabkit.hooks.transfer import Number
from stabkit.metric import Array

if TYPE_CHECKING:
    from stabkit.hooks.statistics import AdamStep

__all__ = ["OF_NOTHING", "Taken", "after", "before", "before_of_after", "count", "magnitude", "merge", "strike_out"]

OF_NOTHING = [0.0] * 6 + [math.inf, -math.inf] + [0.0] * 8
"""The AFTER_COLUMNS of a tensor without elements."""

# Sums add up over pieces; these do not. Places in AFTER_COLUMNS.
_MAXIMA = (1, 7, 10, 13)
_MINIMA = (6,)


@dataclass(frozen=True)
class Taken:
    """A step with the numbers that only the device may know.

    Attributes:
        step: All the others.
        count: The optimizer's count of steps.
        lr: The learning rate.
    """

    step: AdamStep
    count: Number
    lr: Number

    @property
    def bias2(self) -> Number:
        """1 - beta2^count."""
        return 1 - self.step.beta2**self.count

    @property
    def decay(self) -> Number:
        """The share of the weights that the step takes away."""
        return self.lr * self.step.weight_decay if self.step.decoupled else 0.0


def before(p: Tensor | None, g: Tensor | None, m: Tensor | None) -> Tensor:
    """BEFORE_COLUMNS of rows, float64 [rows, 3], g not negated."""
    assert p is not None
    zero = p.new_zeros(p.shape[0])
    dot = zero if g is None or m is None else (g * m).sum(dim=1)
    return torch.stack([_squares(p), dot, zero if m is None else _squares(m)], dim=1)


def before_of_after(
    taken: Taken,
    p: Tensor | None,
    g: Tensor | None,
    m: Tensor | None,
    v: Tensor | None,
    vmax: Tensor | None,
    copy: Tensor | None,
) -> Tensor:
    """BEFORE_COLUMNS of rows, worked back from what the step left: float64 [rows, 3], g not negated."""
    assert p is not None
    zero = p.new_zeros(p.shape[0])
    if m is not None and v is not None:
        copy = _weights_before(taken, p, _adam(taken, m, ((v if vmax is None else vmax) / taken.bias2).sqrt()), copy)
    weight = zero if copy is None else _squares(copy)
    step, dot, momentum = taken.step, zero, zero
    if g is not None and m is not None and copy is not None and step.beta1 > 0:
        drawn = (-g if step.maximize else g) + (0.0 if step.decoupled else step.weight_decay) * copy
        old = (m - (1 - step.beta1) * drawn) / step.beta1
        first = torch.as_tensor(taken.count, dtype=torch.float64, device=p.device).reshape(-1) <= 1
        nothing = torch.full((), math.nan, dtype=torch.float64, device=p.device)
        dot, momentum = (torch.where(first, nothing, x) for x in ((g * old).sum(dim=1), _squares(old)))
    return torch.stack([weight, dot, momentum], dim=1)


def after(
    taken: Taken,
    p: Tensor | None,
    g: Tensor | None,
    m: Tensor | None,
    v: Tensor | None,
    vmax: Tensor | None,
    copy: Tensor | None,
) -> Tensor:
    """AFTER_COLUMNS of rows, float64 [rows, 16]."""
    assert p is not None
    zero = p.new_zeros(p.shape[0])
    grad, second, update = [zero] * 4, [zero] * 3, [zero] * 3
    rms = eps_count = zero
    eps = taken.step.eps
    if g is not None:
        grad = [_squares(g), *magnitude(g), count(g == 0)]
    bias2 = taken.bias2
    if v is not None and (isinstance(bias2, Tensor) or bias2 > 0):
        vhat = v / bias2
        root = vhat.sqrt()
        second = [vhat.sum(dim=1), *_range(vhat)]
        eps_count = count((v > 0) & (root < 10 * eps))
        d2 = vhat if vmax is None else vmax / bias2
        if g is not None:
            rms = (g * g / d2.clamp(min=eps * eps)).sum(dim=1)
        if m is not None:
            update = _update(taken, p, m, root if vmax is None else d2.sqrt(), copy)
    first = zero if m is None else _squares(m)
    applied = zero if copy is None else _squares(p - copy)
    return torch.stack([*grad, first, *second, rms, eps_count, *magnitude(p), *update, applied], dim=1)


def _adam(taken: Taken, m: Tensor, d: Tensor) -> Tensor:
    return taken.lr / (1 - taken.step.beta1**taken.count) * m / (d + taken.step.eps)


def _weights_before(taken: Taken, p: Tensor, adam: Tensor, copy: Tensor | None) -> Tensor:
    """The copy, else what the weights must have been."""
    if copy is not None:
        return copy
    # By a tensor, because dividing by a Python zero (lr * weight_decay = 1) is Inf all the same.
    kept = 1 - taken.decay
    return (p + adam) / (kept if isinstance(kept, Tensor) else p.new_full((), kept))


def _update(taken: Taken, p: Tensor, m: Tensor, d: Tensor, copy: Tensor | None) -> list[Tensor]:
    """Sum of squares and absmax of the intended update, and its dot product with the weights before it."""
    adam = _adam(taken, m, d)
    copy = _weights_before(taken, p, adam, copy)
    update = -adam - taken.decay * copy
    return [_squares(update), magnitude(update)[0], (copy * update).sum(dim=1)]


def magnitude(x: Tensor) -> tuple[Tensor, Tensor]:
    """Largest |x| over finite elements of each row, and the count of the others."""
    size = x.abs()
    return size.nan_to_num(0.0, 0.0, 0.0).amax(dim=1), count(~size.isfinite())


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest finite element of each row; Inf and -Inf where there is none."""
    low = x.nan_to_num(math.inf, math.inf, math.inf).amin(dim=1)
    return low, x.nan_to_num(-math.inf, -math.inf, -math.inf).amax(dim=1)


def _squares(x: Tensor) -> Tensor:
    return (x * x).sum(dim=1)


def count(x: Tensor) -> Tensor:
    """How many are true in each row."""
    return x.sum(dim=1, dtype=torch.float64)


def merge(pieces: Sequence[Tensor]) -> Tensor:
    """AFTER_COLUMNS of rows, from those of their pieces."""
    if len(pieces) == 1:
        return pieces[0]
    table = torch.stack([*pieces])
    merged = table.sum(dim=0)
    for column in _MAXIMA:
        merged[:, column] = table[:, :, column].amax(dim=0)
    for column in _MINIMA:
        merged[:, column] = table[:, :, column].amin(dim=0)
    return merged


def strike_out(row: Array, beta2: float, taken: float, present: Sequence[bool]) -> list[float]:
    """AFTER_COLUMNS with NaN in those that lack a tensor they need, or the bias correction of v.

    Args:
        row: The columns of one tensor.
        beta2: Decay of v.
        taken: The count of steps.
        present: Whether there are p, g, m, v, the largest v, and the copy of p.
    """
    p, g, m, v, _, copy = present
    vhat = v and taken > 0 and beta2 < 1
    bounded = vhat and row[6] <= row[7]
    known = [g] * 4 + [m, vhat, bounded, bounded, vhat and g, vhat, p, p] + [vhat and m] * 3 + [copy]
    return [value if p and known_here else math.nan for value, known_here in zip(row.tolist(), known, strict=True)]
