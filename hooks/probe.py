"""Some elements of every tensor from before a step, to hold an optimizer's formula against what the step really did.

Elements rather than whole tensors: a formula that is wrong is wrong nearly everywhere, and a few thousand elements cost
neither time nor memory. They are compared one by one, so that an update of the right size and the wrong direction is seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from stabkit.hooks.statistics import AdamStep, TensorState
from stabkit.hooks.transfer import Batch, Later
from stabkit.metric import Array

__all__ = ["Probe"]

_ELEMENTS = 4096
_TOLERANCE = 1e-3
"""How far the predicted update may be from the true one, relative to its norm."""
_ROUNDING = 1.0
"""And, for the rounding of p in its own dtype, how many machine epsilons of the norm of p, before or after."""
_TOO_COARSE = 10
"""An update smaller than this many times that rounding proves nothing: weights of 16 bits seldom do."""


class Probe:
    """Elements of the parameters, taken before a step.

    Args:
        states: The tensors before the step.
    """

    def __init__(self, states: Sequence[TensorState]) -> None:
        self._before = [_some_of(s.param).clone() for s in states]
        self._taken: list[_Taken | None] = []

    def take(self, states: Sequence[TensorState], batch: Batch) -> None:
        """Take the same elements after the step, of the moments too; `error` needs the batch fetched."""
        self._taken = [self._take(i, state, batch) for i, state in enumerate(states)]
        self._before = []

    def _take(self, i: int, state: TensorState, batch: Batch) -> _Taken | None:
        if state.grad is None or state.exp_avg is None or state.exp_avg_sq is None or not state.param.numel():
            return None
        second = state.exp_avg_sq if state.max_exp_avg_sq is None else state.max_exp_avg_sq
        count, lr = (None if number is None else batch.add(number) for number in (state.count, state.lr))
        taken = _Taken(torch.finfo(state.param.dtype).eps, count, lr)
        elements = (self._before[i], _some_of(state.param), _some_of(state.exp_avg), _some_of(second))
        for name, tensor in zip(("before", "after", "first", "second"), elements, strict=True):
            batch.then(tensor, functools.partial(setattr, taken, name))
        return taken

    def error(self, steps: Sequence[AdamStep]) -> tuple[float, int]:
        """How badly a formula did in the step.

        Args:
            steps: The numbers of the formula, one per tensor.

        Returns:
            The largest error over the tensors, in units of what is allowed (above 1 the formula is wrong), and the place of the
            tensor that has it; NaN and -1 where no tensor proves anything.
        """
        worst, place = math.nan, -1
        for i, (taken, step) in enumerate(zip(self._taken, steps, strict=True)):
            found = math.nan if taken is None or not step.lr else taken.error(step)
            if not math.isnan(found) and not found <= worst:
                worst, place = found, i
        return worst, place


@dataclass
class _Taken:
    """Elements of one tensor, each float64 [n].

    Attributes:
        rounding: Machine epsilon of the parameter's dtype.
        count: The optimizer's count of steps where it keeps that on a device, else None.
        lr: The same of the learning rate.
        before: The parameter before the step.
        after: The parameter after it.
        first: m after it.
        second: v after it, or the largest so far where the optimizer divides by that.
    """

    rounding: float
    count: Later | None
    lr: Later | None
    before: Array = field(default_factory=lambda: np.empty(0))
    after: Array = field(default_factory=lambda: np.empty(0))
    first: Array = field(default_factory=lambda: np.empty(0))
    second: Array = field(default_factory=lambda: np.empty(0))

    def error(self, step: AdamStep) -> float:
        """The error of a formula in units of what is allowed; NaN where this tensor proves nothing."""
        count = step.count if self.count is None else self.count.value
        lr = step.lr if self.lr is None else self.lr.value
        bias1, bias2 = 1 - step.beta1**count, 1 - step.beta2**count
        possible = bias1 > 0 and bias2 > 0  # at count 0 a formula that corrects divides by zero
        with np.errstate(all="ignore"):
            decay = lr * step.weight_decay if step.decoupled else 0.0
            adam = lr / bias1 * self.first / (np.sqrt(self.second / bias2) + step.eps) if possible else 0.0
            predicted = -decay * self.before - adam
            moved = self.after - self.before
            told = np.isfinite(predicted) & np.isfinite(moved)
            size = max(_norm(moved[told]), _norm(predicted[told]))
            coarse = _ROUNDING * self.rounding * max(_norm(self.before[told]), _norm(self.after[told]))  # one may be all zeros
            if not size > _TOO_COARSE * coarse:
                return math.nan
            return _norm((predicted - moved)[told]) / (_TOLERANCE * size + coarse) if possible else math.inf


def _some_of(tensor: torch.Tensor) -> torch.Tensor:
    """Elements spread over the tensor, by logical order: the same places of all tensors of one shape."""
    real = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    return real.reshape(-1)[:: max(1, real.numel() // _ELEMENTS)]


def _norm(x: Array) -> float:
    return float(np.sqrt(np.sum(x * x)))
