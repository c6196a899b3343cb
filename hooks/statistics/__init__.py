"""Per-tensor sums around one Adam or AdamW step, in two passes: before the step, and after it.

Let p, g, m, v be parameter, gradient, `exp_avg` and `exp_avg_sq`; bc1 = 1 - beta1^t and bc2 = 1 - beta2^t with t the
optimizer's count after the step; v̂ = v / bc2; and d = sqrt(v / bc2), under amsgrad sqrt(`max_exp_avg_sq` / bc2).
The *intended* update is

    Δp = -lr wd p_before - lr / bc1 * m / (d + eps)

without its first term where the decay is not decoupled, because it then went into g inside the step. p_before is the
snapshot where there is one, else (p_after + lr / bc1 * m / (d + eps)) / (1 - lr wd). g is what `p.grad` holds.

| pass | columns, in order |
|---|---|
| before | `weight_sumsq` Σp², `momentum_dot` Σgm (g negated where the optimizer maximizes), `momentum_sumsq` Σm² |
| after | `grad_used_sumsq` Σg², `grad_absmax`, `grad_nonfinite`, `grad_zeros` |
| | `exp_avg_sumsq` Σm², `exp_avg_sq_sum` Σv̂, `exp_avg_sq_min`, `exp_avg_sq_max` of v̂, of v also under amsgrad |
| | `rms_sum` Σg²/max(d², eps²), `eps_count` of elements with v > 0 and sqrt(v̂) < 10 eps |
| | `weight_absmax`, `weight_nonfinite` of p after the step |
| | `update_sumsq` Σ(Δp)², `update_absmax`, `weight_update_dot` Σ p_before Δp |
| | `applied_update_sumsq` Σ(p_after - p_before)², with a snapshot only |

Sums carry NaN and Inf on; extremes are of finite elements only (an absmax of none is 0, a min or max of none is NaN).
A column is NaN where a tensor it needs is absent, and where it needs v̂ and the count is 0. An empty tensor has sums and
counts of 0. A complex element counts as two real ones. Sparse tensors count as absent.

Accuracy: every sum agrees with float64 to about 1e-6 (1e-4 is promised) for magnitudes from 1e-18 to 1e18, also mixed;
`weight_update_dot` and `momentum_dot`, whose terms cancel, relative to the product of the two norms. Counts are exact.
Without a snapshot p_before is known only as well as p_after is rounded: where the update outweighs the weights a
thousandfold, `weight_update_dot` needs a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stabkit.hooks.statistics import cpu, device, reference
from stabkit.hooks.statistics.device import news
from stabkit.hooks.statistics.device_table import release
from stabkit.hooks.transfer import Batch

__all__ = [
    "AFTER_COLUMNS",
    "BEFORE_COLUMNS",
    "AdamStep",
    "TensorState",
    "backend",
    "measure_after",
    "measure_before",
    "measure_moves",
    "measure_sizes",
    "news",
    "release",
]

BEFORE_COLUMNS = ("weight_sumsq", "momentum_dot", "momentum_sumsq")

AFTER_COLUMNS = (
    "grad_used_sumsq",
    "grad_absmax",
    "grad_nonfinite",
    "grad_zeros",
    "exp_avg_sumsq",
    "exp_avg_sq_sum",
    "exp_avg_sq_min",
    "exp_avg_sq_max",
    "rms_sum",
    "eps_count",
    "weight_absmax",
    "weight_nonfinite",
    "update_sumsq",
    "update_absmax",
    "weight_update_dot",
    "applied_update_sumsq",
)


@dataclass(frozen=True, slots=True)
class AdamStep:
    """What the optimizer did to one tensor, apart from the tensors.

    Attributes:
        lr: Learning rate of the step.
        beta1: Decay of `exp_avg`.
        beta2: Decay of `exp_avg_sq`.
        eps: Added to the denominator.
        weight_decay: The group's weight decay.
        count: The optimizer's own count of steps *after* this one; 0 where none has been applied yet.
        maximize: Whether the optimizer climbs, that is, uses -g.
        decoupled: Whether the decay acts on the weights (AdamW) rather than through the gradient (Adam).
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    count: float
    maximize: bool
    decoupled: bool


@dataclass(slots=True, eq=False)  # comparing tensors has no truth value; freezing doubles the cost of making one
class TensorState:
    """One parameter with all that belongs to it, as it is at the time of the call. Tensors are read, never written.

    Attributes:
        param: The parameter; on a sharded model the local shard.
        grad: The gradient as the optimizer uses it, or None.
        exp_avg: First moment, or None before the first step.
        exp_avg_sq: Second moment, or None.
        max_exp_avg_sq: Its running maximum under amsgrad, else None.
        before: A copy of the parameter from before the step, or None.
        count: The optimizer's count of steps, where it keeps that on a device: then this one holds, not that of the `AdamStep`.
        lr: The same of the learning rate.
    """

    param: torch.Tensor
    grad: torch.Tensor | None
    exp_avg: torch.Tensor | None
    exp_avg_sq: torch.Tensor | None
    max_exp_avg_sq: torch.Tensor | None = None
    before: torch.Tensor | None = None
    count: torch.Tensor | None = None
    lr: torch.Tensor | None = None


_UNCOUNTED = AdamStep(lr=0, beta1=0, beta2=0, eps=0, weight_decay=0, count=0, maximize=False, decoupled=True)
"""Of no step: with it, the one pass measures tensors and leaves out moments and update."""


def measure_before(states: Sequence[TensorState], steps: Sequence[AdamStep], batch: Batch | None = None) -> NDArray[np.float64]:
    """Measures parameters, gradients and first moments as they are before an optimizer step.

    Args:
        states: One per tensor.
        steps: One per tensor; only `maximize` matters here. Tensors of a group should share one object.
        batch: Where to leave what is not on the host yet; None to have it at once.

    Returns:
        float64 [len(states), 3], columns as in `BEFORE_COLUMNS`; rows left to the batch are NaN until it is fetched.

    Raises:
        ValueError: The sequences differ in length, or the tensors of one state in shape.
    """
    _same_length(states, steps)
    out = np.full((len(states), len(BEFORE_COLUMNS)), np.nan)
    with _filling(batch) as later:
        for i in device.measure("before", states, steps, cpu.measure_before(states, steps, out), later, out):
            reference.measure_before(states[i], steps[i], later, out[i])
    return out


def measure_after(states: Sequence[TensorState], steps: Sequence[AdamStep], batch: Batch | None = None) -> NDArray[np.float64]:
    """Measures all tensors of an optimizer step after it, and the update it intended.

    Args:
        states: One per tensor.
        steps: One per tensor; tensors of a group should share one object.
        batch: As in `measure_before`.

    Returns:
        float64 [len(states), 16], columns as in `AFTER_COLUMNS`.

    Raises:
        ValueError: The sequences differ in length, or the tensors of one state in shape.
    """
    _same_length(states, steps)
    out = np.full((len(states), len(AFTER_COLUMNS)), np.nan)
    with _filling(batch) as later:
        for i in device.measure("after", states, steps, cpu.measure_after(states, steps, out), later, out):
            reference.measure_after(states[i], steps[i], later, out[i])
    return out


def measure_sizes(tensors: Sequence[torch.Tensor], batch: Batch | None = None) -> NDArray[np.float64]:
    """Measures tensors of any kind by themselves.

    Args:
        tensors: Dense or sparse (COO); of a sparse one duplicate entries are added up first, out of place.
        batch: As in `measure_before`.

    Returns:
        float64 [len(tensors), 4]: Σx², largest finite |x|, how many elements are NaN or infinite, how many are zero; as of
        the gradient in `AFTER_COLUMNS`. Of tensors in other layouts all are NaN.
    """
    dense = [reference.entries(tensor) for tensor in tensors]
    out = np.full((len(dense), 4), np.nan)
    others = cpu.measure_sizes(dense, out)
    zeros = [(t.numel() - x.numel()) * (2 if x.is_complex() else 1) for t, x in zip(tensors, dense, strict=True)]
    out[:, 3] += zeros
    with _filling(batch) as later:
        for i in others:
            reference.measure_size(dense[i], later, out[i], zeros[i])
    return out


def measure_moves(
    params: Sequence[torch.Tensor], befores: Sequence[torch.Tensor], batch: Batch | None = None
) -> NDArray[np.float64]:
    """Measures what a step really did to parameters. The copies are used up: what is in them afterwards is not said.

    Args:
        params: The parameters after the step.
        befores: Copies of them from before it, of the same shape and dtype.
        batch: As in `measure_before`.

    Returns:
        float64 [len(params), 2]: Σ(p_after - p_before)² and Σ p_before (p_after - p_before).
    """
    out = np.full((len(params), 2), np.nan)
    exact = [i for i, p in enumerate(params) if p.dtype is torch.float32]  # a difference in 16 bits would be rounded
    for i in exact:
        torch.sub(params[i].detach(), befores[i], out=befores[i])
    states = [TensorState(befores[i], params[i].detach(), befores[i], None) for i in exact]

    with _filling(batch) as later:
        sums = measure_before(states, [_UNCOUNTED] * len(exact), later)  # ΣΔ², Σ p_after Δ, ΣΔ²
        later.afterwards(lambda: out.__setitem__((exact, 0), sums[:, 0]))
        later.afterwards(lambda: out.__setitem__((exact, 1), sums[:, 1] - sums[:, 0]))
        for i in set(range(len(params))) - set(exact):
            reference.measure_move(params[i], befores[i], later, out[i])
    return out


@contextmanager
def _filling(batch: Batch | None) -> Iterator[Batch]:
    """The batch; where there is none, one that is fetched at the end."""
    own = Batch() if batch is None else batch
    yield own
    if batch is None:
        own.fetch()


def backend(kind: str = "cpu") -> str:
    """Says what measures plain tensors.

    Args:
        kind: The type of the device they lie on.

    Returns:
        Of the CPU, for floats of 32 and 16 bits, "c", or "reference" where the extension was not built; of others "triton", or
        "stacked" where Triton is absent or has failed.
    """
    if kind != "cpu":
        return device.backend()
    return "reference" if cpu.native is None else "c"


def _same_length(states: Sequence[TensorState], steps: Sequence[AdamStep]) -> None:
    if len(states) != len(steps):
        raise ValueError(f"{len(states)} tensor states but {len(steps)} steps; pass one step per tensor")
