"""Whether an optimizer's update may be worked out from its state, or has to be measured.

Torch's own Adam and AdamW are believed from the start. Any other optimizer that keeps two moments as Adam does may be an Adam:
every variant of `formula` is tried against what the steps really did, and believed after two proofs. Both are tried again now
and then, for a step can be patched, and a subclass may begin to do something else. What fails once is measured from then on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch.optim.optimizer import Optimizer

from stabkit.hooks.formula import ADAM, VARIANTS, Moments, Variant, certain_moments, certain_variant, is_torch_adam, moments_in
from stabkit.hooks.probe import Probe
from stabkit.hooks.statistics import AdamStep, TensorState
from stabkit.metric import TENSOR_COLUMNS
from stabkit.runlog import Group

__all__ = ["Trust"]

_PROOFS = 2
_AGAIN = 1000
"""Measured steps between two further trials."""

_OF_FIRST = ("momentum_", "exp_avg_sumsq")
_OF_SECOND = ("exp_avg_sq_", "rms_", "eps_")
_OF_UPDATE = ("update_",)


class Trust:
    """What is believed of one optimizer.

    Args:
        optimizer: The optimizer.

    Attributes:
        is_torch_adam: Whether it is exactly torch's Adam or AdamW.
        derives: Whether the update follows from the state.
        moments: Where its moments are, as far as it is certain what they are.
        variant: The kind of Adam it is, or whose denominator it has; None for exactly torch's.
        changed: Whether any of that is new; to be set back by whoever has seen it.
        news: What a log should be told, and the place of the tensor it was seen at, until somebody takes it.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.is_torch_adam = self.derives = is_torch_adam(optimizer)
        self.moments: Moments | None = ADAM if self.derives else certain_moments(optimizer)
        self.variant: Variant | None = certain_variant(optimizer)
        self.changed = False
        self.news: tuple[str, int] | None = None
        self._name = type(optimizer).__name__
        self._left: tuple[Variant, ...] = () if self.moments else VARIANTS
        self._why = "its formula is another than Adam's" if self.moments else "no two steps have yet proved that it does"
        self._proofs = self._wait = 0
        self._decaying: list[bool] = []

    def due(self, groups: Sequence[Group]) -> bool:
        """Whether the formula is to be held against the coming step. To be asked once before each step that is measured."""
        if not (self.derives or self._left) or all(group.lr == 0 for group in groups):
            return False
        self._wait -= 1
        return self._proofs < _PROOFS or self._wait <= 0 or self._decaying != _decaying(groups)

    def look(self, optimizer: Optimizer, states: Sequence[TensorState], groups: Sequence[Group]) -> Moments | None:
        """Where the moments are to be found for a trial, after a step; None, for good, where it can be no Adam."""
        if self.moments is not None:
            return self.moments
        found = moments_in(optimizer, [s.param for s in states if s.grad is not None])
        told = all(math.isfinite(number) for g in groups for number in (g.lr, g.beta1, g.beta2, g.eps))
        if found and told:
            return found
        if any(s.grad is not None for s in states):
            self._left = ()
            self._why = "its state does not hold two moments of every tensor, as Adam's would"
            self.changed = True
        return None

    def judge(
        self,
        probe: Probe,
        moments: Moments,
        steps: Callable[[Variant | None], list[AdamStep]],
        groups: Sequence[Group],
    ) -> None:
        """Hold the formula against a step that was taken.

        Args:
            probe: From before the step and after it.
            moments: Where the moments were read.
            steps: Gives the numbers of the step for a variant.
            groups: The hyperparameters the step used.
        """
        candidates: tuple[Variant | None, ...] = (None,) if self.is_torch_adam else self._left
        results = [(*probe.error(steps(variant)), variant) for variant in candidates]
        told = [result for result in results if not math.isnan(result[0])]
        self._decaying, self._wait = _decaying(groups), _AGAIN
        if not told:  # updates too small for the dtype of the weights
            self._proofs += self.is_torch_adam
            return
        kept = [result for result in told if self.derives and result[2] == self.variant and result[0] <= 1]
        best, place, self.variant = kept[0] if kept else min(told, key=lambda result: result[0])
        if best > 1:
            self._fail(place, max(best, 0.0) * 1e-3)
            return
        self._proofs += 1
        if not self.is_torch_adam:
            self._left = tuple(v for error, _, v in told if error <= 1 and v is not None)
            if self._proofs >= _PROOFS and not self.derives:
                self.derives, self.moments, self.changed = True, moments, True

    def _fail(self, place: int, error: float) -> None:
        self.derives, self.variant, self._left, self.changed = False, None, (), True
        self.moments = None
        self._why = "its weights do not move as the moments in its state say"
        size = f"{min(error, 9.99):.0%} of the update" if error < 10 else "more than the update itself"
        self.news = (f"{self._name} does not change its weights as Adam would (off by {size}): its updates are measured", place)

    def missing(self, exact_updates: bool) -> dict[str, str]:
        """The columns that no step can have as long as nothing changes, with the reason."""
        reasons: dict[str, str] = {}
        if self.derives and not exact_updates:
            reasons["applied_update_sumsq"] = "measured with stabkit.watch(..., exact_updates=True)"
        if not self.derives:
            why = f"the update of {self._name} is measured, not worked out from its state: {self._why}"
            reasons |= _of(_OF_UPDATE, f"{why}; ask for applied_update_norm")
        if self.moments is None or self.moments.first is None:
            reasons |= _of(_OF_FIRST, f"what {self._name} keeps is not known to be a first moment")
        if self.moments is None or self.moments.second is None:
            reasons |= _of(_OF_SECOND, f"what {self._name} keeps is not known to be a second moment as Adam's")
        return reasons


def _of(beginnings: tuple[str, ...], why: str) -> dict[str, str]:
    return {column.name: why for column in TENSOR_COLUMNS if column.name.startswith(beginnings)}


def _decaying(groups: Sequence[Group]) -> list[bool]:
    """Which groups decay: without decay, kinds of it cannot be told apart."""
    return [group.weight_decay > 0 for group in groups]
