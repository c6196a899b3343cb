"""The ways an optimizer's update may follow from its state, and where optimizers keep that state.

All of them are torch's AdamW with other numbers, so that one pass over the tensors measures them all. With a the Adam term of
the update, lr / bc1 * m / (sqrt(v / bc2) + eps), and bc1, bc2 the bias corrections after t steps:

| what a hand-written Adam does differently | is AdamW with |
|---|---|
| no bias correction | t = inf, for beta^inf = 0 |
| keeps the count of the step to come | t - 1 |
| adds eps to sqrt(v) instead of sqrt(v / bc2) | eps / sqrt(bc2) |
| decays the weights after the update, p = (p - a) (1 - lr wd) | the rate lr (1 - lr wd), the decay wd / (1 - lr wd) |
| adds wd p to the gradient | no decay of the weights |
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks.statistics import AdamStep

__all__ = ["ADAM", "VARIANTS", "Moments", "Variant", "certain_moments", "certain_variant", "is_torch_adam", "moments_in"]

_READ_BY_ADAM = {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"}


@dataclass(frozen=True)
class Moments:
    """The keys under which an optimizer keeps moments of a parameter; None for one it has not.

    Attributes:
        first: m, the running mean of the gradient.
        second: v, that of its square.
        largest: The largest v so far, where the optimizer divides by that.
    """

    first: str | None = None
    second: str | None = None
    largest: str | None = None


ADAM = Moments("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_PAIRS = (ADAM, Moments("m", "v"))
_CERTAIN = {
    ("torch.optim", "NAdam"): Moments("exp_avg", "exp_avg_sq"),
    ("torch.optim", "RAdam"): Moments("exp_avg", "exp_avg_sq"),
    ("torch.optim", "Adamax"): Moments("exp_avg"),
    ("torch.optim", "SparseAdam"): Moments("exp_avg"),  # its v stands still where the gradient has no entry
    ("lion_pytorch", "Lion"): Moments("exp_avg"),
}


def is_torch_adam(optimizer: Optimizer) -> bool:
    """Whether it is exactly torch's AdamW or Adam, with every key they read in each group."""
    return type(optimizer) in (torch.optim.AdamW, torch.optim.Adam) and all(
        group.keys() >= _READ_BY_ADAM for group in optimizer.param_groups
    )


def certain_moments(optimizer: Optimizer) -> Moments | None:
    """The moments of a well-known optimizer with another update; None for one that is not known."""
    home, name = f"{type(optimizer).__module__}.", type(optimizer).__name__
    return next((known for (where, kind), known in _CERTAIN.items() if kind == name and home.startswith(f"{where}.")), None)


def certain_variant(optimizer: Optimizer) -> Variant | None:
    """How a well-known optimizer with another update forms v-hat and its denominator; None for as torch's Adam does."""
    return Variant("before", 0.0, inner_eps=True) if type(optimizer) is torch.optim.RAdam else None


def moments_in(optimizer: Optimizer, parameters: Iterable[torch.Tensor]) -> Moments | None:
    """Where the state of every parameter that has one holds two moments of the parameter's shape; None where it does not."""
    states = [(p, optimizer.state[p]) for p in parameters if p in optimizer.state]
    for pair in _PAIRS:
        if states and all(_like(p, state, pair.first) and _like(p, state, pair.second) for p, state in states):
            return pair
    return None


def _like(p: torch.Tensor, state: Any, key: str | None) -> bool:
    found = state.get(key) if key and isinstance(state, dict) else None
    if not isinstance(found, torch.Tensor) or found.shape != p.shape or found.layout is not torch.strided:
        return False
    plain = type(found) in (torch.Tensor, torch.nn.Parameter, type(p))  # a subclass may hold quantised numbers
    return plain and (found.is_floating_point() or found.is_complex())


@dataclass(frozen=True)
class Variant:
    """A kind of Adam.

    Attributes:
        decay: "before" or "after" the update, or "coupled" into the gradient.
        correction: What is added to the optimizer's count to give the t of bias correction: 0, -1, or inf for none.
        inner_eps: Whether eps is added to sqrt(v) before bias correction.
    """

    decay: str
    correction: float
    inner_eps: bool

    def of(self, step: AdamStep) -> AdamStep:
        """The step of torch's AdamW that does the same."""
        count = max(step.count + self.correction, 0.0)
        bias2 = 1 - step.beta2**count
        eps = step.eps / math.sqrt(bias2) if self.inner_eps and bias2 > 0 else step.eps
        lr, decay = step.lr, 0.0 if math.isnan(step.weight_decay) else step.weight_decay
        kept = 1 - lr * decay
        if self.decay == "after" and kept != 0:
            lr, decay = lr * kept, decay / kept
        return replace(step, lr=lr, eps=eps, weight_decay=decay, count=count, decoupled=self.decay != "coupled")


VARIANTS: tuple[Variant, ...] = tuple(
    Variant(decay, correction, inner_eps)
    for correction, inner_eps, decay in itertools.product((0.0, -1.0, math.inf), (False, True), ("before", "after", "coupled"))
    if not (inner_eps and correction == math.inf)
)
"""The usual ones first."""
