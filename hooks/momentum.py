"""The first moment from before a step, worked back from the one after it: before a closure there is no gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stabkit.hooks.statistics import AdamStep, TensorState
from stabkit.hooks.transfer import Batch
from stabkit.metric import Array

__all__ = ["momentum_before"]

_DRAWN_OUT = 1e-3
"""Moments before a step are not worked back from those after it where they were smaller than this by comparison: what came
out would be all rounding."""


def momentum_before(state: TensorState, step: AdamStep, batch: Batch, use: Callable[[Array], None]) -> None:
    """Hands Σgm and Σm² on, float64 [2], with m from before the step; nothing where they cannot be told.

    Args:
        state: The tensor after the step.
        step: The step.
        batch: That of the step.
        use: Called when the batch is settled.
    """
    if state.exp_avg is None or state.exp_avg_sq is None or state.grad is None or step.count <= 1 or not step.beta1 > 0:
        return
    if step.weight_decay and not step.decoupled:  # m has taken in more than the gradient
        return
    grad, after = (_real(tensor).to(torch.float64) for tensor in (state.grad, state.exp_avg))
    if step.maximize:
        grad = -grad
    before = (after - (1 - step.beta1) * grad) / step.beta1
    sums = torch.stack([(grad * before).sum(), before.square().sum(), after.square().sum()])
    batch.then(sums, lambda values: use(values[:2]) if values[1] > _DRAWN_OUT**2 * values[2] else None)


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
