"""Where two runs that began alike stopped being the same: the first step at which any number differs, and what in it did first.

A step goes in an order: weights, loss, gradients, updates. What differs first in it, while all before it is the same, tells
where to look: a loss that differs on the same weights comes from the data, an update that differs on the same gradients from
the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabkit.compare.common import Pair
from stabkit.compare.result import Split
from stabkit.metric import Array

__all__ = ["PROOF", "ROUNDING", "STAGES", "split_of"]

STAGES: Mapping[str, tuple[str, ...]] = {
    "weights": ("weight_norm", "weight_sumsq"),
    "optimizer state": ("momentum_sumsq",),
    "loss": ("loss", "loss_sum", "backward_count"),
    "gradients": ("grad_norm", "grad_norm_used", "clip_coefficient", "loss_scale", "grad_sumsq", "grad_used_sumsq",
                  "grad_absmax", "grad_nonfinite", "grad_zeros"),
    "updates": ("skipped", "momentum_dot", "applied_steps", "update_norm", "applied_update_norm", "exp_avg_sumsq",
                "exp_avg_sq_sum", "exp_avg_sq_min", "exp_avg_sq_max", "rms_sum", "eps_count", "update_sumsq", "update_absmax",
                "weight_update_dot", "applied_update_sumsq", "weight_absmax", "weight_nonfinite"),
}  # fmt: skip
"""What is looked at, in the order in which a step makes it: of the whole step and of each tensor, as stored."""
PROOF = 6
"""Digits that must agree, beyond the first two of each number, before two runs count as the same at their beginning: two losses
of 2.3 are no proof, two of 2.302585 nearly are."""
ROUNDING = 1e-5
"""A relative difference below this, at the step at which two runs part, is that of float32 sums in another order."""
_SIZES = {"loss", "weight_norm", "grad_norm_used", "update_norm", "weight_sumsq", "grad_used_sumsq", "update_sumsq"}
"""Norms, by which a difference is called small. A product of two vectors may be all rounding."""
_WORKED_BACK = {"weight_norm": 1e-6, "weight_sumsq": 1e-6, "momentum_sumsq": 1e-5}
"""What may have been worked back from after the step (see `stabkit.hooks.once`), and how far rounding may move it then. Where
it differs by no more, it is the step that differs: in what is measured of gradients and updates, to the last bit."""
_MAY_BE_MISSING = {"grad_norm", "grad_sumsq", "clip_coefficient", "loss_scale"}
"""What is recorded only where it can be proved, or where the loop does such a thing."""
_ENOUGH = 200
"""Numbers counted for the proof."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class _Held:
    """One quantity that both runs have: its stage, its steps, and both runs' values [steps] or [steps, tensors]."""

    stage: str
    name: str
    steps: NDArray[np.int64]
    values: Callable[[], tuple[Array, Array]]
    of_tensors: bool

    @property
    def may_be_missing(self) -> bool:
        """Whether a NaN beside a number is no difference: the one was not recorded there."""
        return self.name in _MAY_BE_MISSING

    def at(self, row: int) -> tuple[Array, Array, Flags]:
        """Both runs' values at a row, and where they differ."""
        a, b = (values[row] for values in self.values())
        return a, b, _differs(a, b, self.may_be_missing, self.rounding)

    @property
    def rounding(self) -> float:
        """By what share of itself it may be off without meaning anything."""
        return _WORKED_BACK.get(self.name, 0.0)


def split_of(pairs: Sequence[Pair]) -> tuple[Split | None, bool]:
    """Where the runs stopped being the same, and whether they ever were.

    Args:
        pairs: The optimizers of the two runs.

    Returns:
        None and True where nothing differs; None and False where they were never the same, or too little proves it.
    """
    found = [(pair, held, _first(held)) for pair in pairs for held in _held(pair)]
    if not found:
        return None, False
    differing = [int(held.steps[row]) for _, held, row in found if row is not None]
    step = min(differing, default=None)
    if _proof([held for _, held, _ in found], step) < PROOF:
        return None, False
    if step is None:
        return None, True
    pair = next(pair for pair, held, row in found if row is not None and held.steps[row] == step)
    return _told(pair, step, [held for owner, held, _ in found if owner is pair]), True


def _held(pair: Pair) -> Iterator[_Held]:
    """The quantities that both runs of a pair have."""
    for stage, names in STAGES.items():
        for name in names:
            if pair.has_step(name):
                yield _Held(stage, name, pair.steps, lambda name=name: pair.of_steps(name), False)  # type: ignore[misc]
            if pair.has_column(name):
                yield _Held(stage, name, pair.tensor_steps, lambda name=name: pair.of_tensors(name), True)  # type: ignore[misc]


def _differs(a: Array, b: Array, may_be_missing: bool, rounding: float) -> Flags:
    missing = np.isnan(a) | np.isnan(b) if may_be_missing else np.isnan(a) & np.isnan(b)
    differs = (a != b) & ~missing
    if rounding and differs.any():
        with np.errstate(invalid="ignore"):
            differs &= ~(np.abs(a - b) <= rounding * np.maximum(np.abs(a), np.abs(b)))
    return np.asarray(differs)


def _first(held: _Held) -> int | None:
    """The first row in which the two runs differ."""
    differs = _differs(*held.values(), held.may_be_missing, held.rounding)
    rows = np.flatnonzero(differs.any(axis=1) if differs.ndim > 1 else differs)
    return int(rows[0]) if len(rows) else None


def _proof(held: Sequence[_Held], step: int | None) -> int:
    """How many digits say that the runs are the same: those of the numbers that agree before the step and, in the step, before
    what differs."""
    proof = 0
    for each in held:
        a, b = each.values()
        rows = slice(0, None if step is None else int(np.searchsorted(each.steps, step, "right")))
        agree = (a[rows] == b[rows]) & np.isfinite(a[rows])
        for value in np.unique(a[rows][agree])[:_ENOUGH].tolist():
            digits = len(repr(float(value)).split("e")[0].replace(".", "").replace("-", "").strip("0"))
            proof += max(digits - 2, 0)
            if proof >= PROOF:
                return proof
    return proof


def _told(pair: Pair, step: int, held: Sequence[_Held]) -> Split:
    size, stages, same = 0.0, list[str](), list[str]()
    for each in held:
        row = int(np.searchsorted(each.steps, step))
        if row >= len(each.steps) or each.steps[row] != step:
            continue
        a, b, differs = each.at(row)
        size = max(size, _size(_relative(a, b, differs), differs) if each.name in _SIZES else 0.0)
        (stages if np.any(differs) else same).append(each.stage)
    stage = next((name for name in STAGES if name in stages), "updates")
    order = list(STAGES)
    before = tuple(name for name in order[: order.index(stage)] if name in same)
    earlier = pair.steps[pair.steps < step]
    measured = [each for each in held if each.of_tensors]
    tensor_step, tensors = _tensors(pair, step, measured)
    return Split(
        step=step,
        same_until=int(earlier[-1]) if len(earlier) else None,
        stage=stage,
        same=before,
        tensor_step=tensor_step,
        tensors=tensors,
        compared=len(pair.names) if measured else 0,
        size=size,
        settings=pair.settings_that_differ(step),
    )


def _tensors(pair: Pair, step: int, measured: Sequence[_Held]) -> tuple[int | None, tuple[str, ...]]:
    """The first measured step from a step on, and which tensors differ there in the first stage that does, furthest first."""
    later = np.flatnonzero(pair.tensor_steps >= step)
    if not len(later) or not measured:
        return None, ()
    row = int(later[0])
    for stage in STAGES:
        furthest = np.zeros(len(pair.names))
        for each in measured:
            if each.stage == stage:
                a, b, differs = each.at(row)
                furthest = np.maximum(furthest, np.where(differs, np.maximum(_relative(a, b, differs), 1e-300), 0))
        if furthest.any():
            order = np.argsort(-furthest, kind="stable")[: int(np.sum(furthest > 0))]
            return int(pair.tensor_steps[row]), tuple(pair.names[i] for i in order)
    return int(pair.tensor_steps[row]), ()


def _size(relative: Array, differs: Flags) -> float:
    """Of the whole step its difference; of tensors the middle one of those that differ: where all of a tensor's gradient is
    rounding (a key's bias), so is all of its difference."""
    return float(relative) if not np.ndim(relative) else float(np.median(relative[differs])) if differs.any() else 0.0


def _relative(a: Array, b: Array, differs: Flags) -> Array:
    """|a - b| over the larger of the two; 1 where one of them is no number."""
    with np.errstate(all="ignore"):
        share = np.abs(a - b) / np.maximum(np.abs(a), np.abs(b))
    return np.where(differs, np.where(np.isfinite(share), share, 1.0), 0.0)
