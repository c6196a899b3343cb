"""Some elements of every tensor from before a step, to hold an optimizer's formula against what the step really did.

Elements rather than whole tensors: a formula that is wrong is wrong nearly everywhere, and a few thousand elements cost
neither time nor memory. They are compared one by one, so that an update of the right size and the wrong direction is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from stabkit.hooks.statistics import AdamStep, TensorState
from stabkit.metric import Array

__all__ = ["Probe"]

_ELEMENTS = 4096
_TOLERANCE = 1e-3
"""How far the predicted update may be from the true one, relative to its norm."""
_ROUNDING = 1.0
"""And, for the rounding of p in its own dtype, how many machine epsilons of the norm of p."""
_TOO_COARSE = 10
"""An update smaller than this many times that rounding proves nothing: weights of 16 bits seldom do."""


class Probe:
    """Elements of the parameters, taken before a step.

    Args:
        states: The tensors before the step.
    """

    def __init__(self, states: Sequence[TensorState]) -> None:
        self._before = [_some_of(s.param) for s in states]

    def error(self, states: Sequence[TensorState], steps: Sequence[AdamStep]) -> tuple[float, int]:
        """How badly a formula did in the step.

        Args:
            states: The tensors after the step.
            steps: The numbers of the formula, one per tensor.

        Returns:
            The largest error over the tensors, in units of what is allowed (above 1 the formula is wrong), and the place of the
            tensor that has it; NaN and -1 where no tensor proves anything.
        """
        worst, place = math.nan, -1
        for i, (state, step) in enumerate(zip(states, steps, strict=True)):
            found = self._error(i, state, step)
            if not math.isnan(found) and not found <= worst:
                worst, place = found, i
        return worst, place

    def _error(self, i: int, state: TensorState, step: AdamStep) -> float:
        if state.grad is None or state.exp_avg is None or state.exp_avg_sq is None or not step.lr or not state.param.numel():
            return math.nan
        before, after, m = self._before[i], _some_of(state.param), _some_of(state.exp_avg)
        v = _some_of(state.exp_avg_sq if state.max_exp_avg_sq is None else state.max_exp_avg_sq)
        bias1, bias2 = 1 - step.beta1**step.count, 1 - step.beta2**step.count
        possible = bias1 > 0 and bias2 > 0  # at count 0 a formula that corrects divides by zero
        with np.errstate(all="ignore"):
            decay = step.lr * step.weight_decay if step.decoupled else 0.0
            adam = step.lr / bias1 * m / (np.sqrt(v / bias2) + step.eps) if possible else 0.0
            predicted = -decay * before - adam
            moved = after - before
            told = np.isfinite(predicted) & np.isfinite(moved)
            size = max(_norm(moved[told]), _norm(predicted[told]))
            coarse = _ROUNDING * torch.finfo(state.param.dtype).eps * _norm(before[told])
            if not size > _TOO_COARSE * coarse:
                return math.nan
            return _norm((predicted - moved)[told]) / (_TOLERANCE * size + coarse) if possible else math.inf


def _some_of(tensor: torch.Tensor) -> Array:
    """Elements spread over the tensor, in float64, by logical order: the same places of all tensors of one shape."""
    real = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    flat = real.reshape(-1)[:: max(1, real.numel() // _ELEMENTS)]
    found: Array = flat.to(torch.float64, copy=True).numpy()
    return found


def _norm(x: Array) -> float:
    return float(np.sqrt(np.sum(x * x)))
