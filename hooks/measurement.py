"""Measures the tensors of one optimizer around one step, in two passes: before it and after it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks.gradients import GradientLedger
from stabkit.hooks.optimizer import Roster, group_values, has_known_formula, states_of, steps_of
from stabkit.hooks.scaler import carried_scale
from stabkit.hooks.statistics import AFTER_COLUMNS, BEFORE_COLUMNS, AdamStep, TensorState, measure_after, measure_before
from stabkit.hooks.transfer import to_host
from stabkit.metric import TENSOR_COLUMNS, Array
from stabkit.runlog import Group

__all__ = ["Measurement", "weights_now"]

_PLACE = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
_BEFORE = [_PLACE[name] for name in BEFORE_COLUMNS]
_AFTER = [_PLACE[name] for name in AFTER_COLUMNS]
_OF_GRADIENT = [_PLACE[name] for name in ("grad_used_sumsq", "grad_absmax", "grad_nonfinite", "grad_zeros", "rms_sum")]
_OF_UPDATE = [_PLACE[name] for name in ("update_sumsq", "update_absmax", "weight_update_dot")]

_ADDED = [i for i, column in enumerate(TENSOR_COLUMNS) if column.merge == "sum"]
_STILL = AdamStep(lr=0, beta1=0, beta2=0, eps=0, weight_decay=0, count=0, maximize=False, decoupled=True)

_OF_BITS = [_PLACE[name] for name in ("unchanged_count", "unchanged_sampled")]
_SAMPLED = 4096
"""About how many elements of a tensor are compared bit by bit: the share is then known to a percent or two."""
_OF_MOMENTS = [
    place
    for name, place in _PLACE.items()
    if name.startswith(("exp_avg", "momentum_", "eps_", "rms_", "unchanged_"))
]

_SMALL = 0.1
"""A tensor whose RMS is below this many learning rates is copied before the step: its weights before the step cannot be worked
back from those after it, because the update was so much larger that rounding has wiped them out."""
_LARGE_DECAY = 0.5
"""The same where a step takes away more than this share of the weights."""
_DRAWN_OUT = 1e-3
"""First moments before a step are not worked back from those after it where they were smaller than this by comparison."""


def weights_now(optimizer: Optimizer, roster: Roster) -> Array:
    """Columns that hold the weights as they are, and nothing else."""
    columns = _blank(len(roster.owners))
    if not roster.on_host:
        return columns
    bare = roster.held(roster.bare())
    columns[:, _BEFORE] = measure_before(bare, steps_of(optimizer, roster, group_values(optimizer)))
    return columns


class Measurement:
    """The tensor columns of one step. Making one measures what must be seen before the step.

    Args:
        optimizer: The optimizer, about to step.
        roster: Its parameters.
        exact_updates: Copy all weights, so that the applied update is measured.
        closure: Whether the gradient does not exist yet, because the step itself will compute it.
    """

    def __init__(self, optimizer: Optimizer, roster: Roster, exact_updates: bool, closure: bool) -> None:
        self._optimizer, self._roster, self._closure = optimizer, roster, closure
        self._known = has_known_formula(optimizer)
        self._states = roster.held(states_of(optimizer, roster.parameters))
        if closure:
            for state in self._states:
                state.grad = None
        groups = group_values(optimizer)
        self.columns = _blank(len(roster.owners))
        self.columns[:, _BEFORE] = measure_before(self._states, steps_of(optimizer, roster, groups))
        self._scale = carried_scale(optimizer)
        self.columns[:, _PLACE["momentum_dot"]] /= self._scale
        if exact_updates or self._known:
            self._copy_weights(groups, exact_updates)
        self._samples = self._sample_bits(groups, exact_updates)

    def finish(
        self, groups: Sequence[Group], counts: Sequence[float], ledger: GradientLedger, skipped: bool = False
    ) -> None:
        """Measure what must be seen after the step.

        Args:
            groups: The hyperparameters the step used.
            counts: The optimizer's count of steps of each of its parameters.
            ledger: What is known about the gradients.
            skipped: Whether a scaler made the optimizer pass the step over.
        """
        states = self._states_after()
        owners = self._roster.owners
        steps = steps_of(self._optimizer, self._roster, groups, [counts[i] for i in owners])
        self.places = [i for i, s in enumerate(states) if s.grad is not None]
        """Of the tensors that had a gradient."""
        dense = [i for i in self.places if not states[i].grad.is_sparse]  # type: ignore[union-attr]
        if self._closure:
            for i in dense:
                self.columns[i, [_PLACE["momentum_dot"], _PLACE["momentum_sumsq"]]] = _momentum_before(states[i], steps[i])
        everything = len(dense) == len(states)
        after = measure_after(
            states if everything else [states[i] for i in dense], steps if everything else [steps[i] for i in dense]
        )
        self.columns[slice(None) if everything else np.array(dense, dtype=np.intp)[:, None], _AFTER] = after
        if self._known:
            idle = [i for i, s in enumerate(states) if s.grad is None]
            self.columns[np.ix_(idle, _OF_UPDATE)] = 0.0  # the optimizer passes over a tensor without a gradient
        for i, (places, before) in self._samples.items():
            self.columns[i, _OF_BITS] = _unchanged(states[i], places, before)
        if skipped:
            self._pass_over()
        self.columns[:, _PLACE["grad_sumsq"]] = ledger.before_clipping(self.columns[:, _PLACE["grad_used_sumsq"]], owners)
        if not self._known and not self._closure:  # some optimizers use the gradient as scratch space
            spoiled = np.isin(owners, ledger.rewritten())
            self.columns[np.ix_(spoiled, [*_OF_GRADIENT, _PLACE["grad_sumsq"]])] = math.nan
        if self._roster.sharded:
            self._settle_shards(states)

    def _settle_shards(self, states: Sequence[TensorState]) -> None:
        """Make the columns such that those of all shards can be merged.

        A shard of nothing adds nothing, also where FSDP1 gives it no gradient. A gradient that could not be read shows as such,
        by what is known of its weights: without that it would look like one that was not there.
        """
        empty = [i for i, s in enumerate(states) if not s.param.numel()]
        self.columns[np.ix_(empty, _ADDED)] = 0.0
        for i, state in enumerate(states):
            if state.grad is not None and state.grad.is_sparse and i not in empty:
                bare = TensorState(state.param, None, None, None)
                self.columns[i, _AFTER] = measure_after([bare], [_STILL])[0]

    def norm(self, column: str, places: Sequence[int] | None = None) -> float:
        """The root of a column's sum over the tensors, or over some of them; NaN where any lacks it."""
        values = self.columns[:, _PLACE[column]]
        values = values if places is None else values[list(places)]
        return math.sqrt(total) if (total := float(values.sum())) >= 0 and len(values) else math.nan

    def total(self, column: str) -> float:
        """A column's sum over the tensors that had a gradient."""
        return float(self.columns[self.places, _PLACE[column]].sum())

    def _sample_bits(self, groups: Sequence[Group], all_of_them: bool) -> dict[int, tuple[slice, torch.Tensor]]:
        """Copies of some elements of weights that may be too coarse for their updates, by place, with where they lie."""
        samples = {}
        for i in range(len(self._states)) if all_of_them else self._roster.coarse:
            p = self._states[i].param
            if groups[self._roster.groups[i]].lr > 0 and p.numel() and p.is_contiguous() and not p.is_complex():
                places = slice(None, None, max(1, p.numel() // _SAMPLED))
                samples[i] = places, p.detach().view(-1)[places].clone()
        return samples

    def _pass_over(self) -> None:
        """Make the columns those of a step that was not taken."""
        self.columns[:, _OF_MOMENTS] = math.nan
        self.columns[:, _OF_UPDATE] = 0.0
        # A fused optimizer takes the scale off the gradients only in a step that it takes.
        self.columns[:, _PLACE["grad_used_sumsq"]] /= self._scale**2
        self.columns[:, _PLACE["grad_absmax"]] /= self._scale

    def _states_after(self) -> list[TensorState]:
        states = self._states
        if self._closure or any(s.exp_avg is None for s in states):  # the step made gradients, or its moments
            copies = [s.before for s in states]
            states = self._roster.held(states_of(self._optimizer, self._roster.parameters))
            for state, copy in zip(states, copies, strict=True):
                state.before = copy
        self._states = []  # the copies of weights must not outlive the step
        return states

    def _copy_weights(self, groups: Sequence[Group], all_of_them: bool) -> None:
        lr = np.array([group.lr for group in groups])
        decay = np.array([group.weight_decay for group in groups])
        squares = self.columns[:, _PLACE["weight_sumsq"]]
        needed = squares < ((_SMALL * lr) ** 2)[self._roster.groups] * self._roster.sizes
        needed |= all_of_them | (np.abs(lr * decay) > _LARGE_DECAY)[self._roster.groups]
        for i in np.flatnonzero(needed).tolist():
            state = self._states[i]
            if state.grad is not None or self._closure:
                state.before = state.param.detach().clone()


def _blank(tensors: int) -> Array:
    return np.full((tensors, len(TENSOR_COLUMNS)), np.nan)


def _unchanged(state: TensorState, places: slice, before: torch.Tensor) -> tuple[float, float]:
    """How many sampled elements with a gradient kept their bits, and how many had a gradient; NaN without one."""
    if state.grad is None or not state.grad.is_contiguous():
        return math.nan, math.nan
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[before.element_size()]
    now = state.param.detach().view(-1)[places].clone()
    moved_by = state.grad.detach().view(-1)[places] != 0
    same = now.view(whole) == before.view(whole)
    return float((same & moved_by).sum().item()), float(moved_by.sum().item())


def _momentum_before(state: TensorState, step: AdamStep) -> tuple[float, float]:
    """Σgm and Σm² with m from before the step, worked back from m after it; NaN where that would be all rounding."""
    if state.exp_avg is None or state.grad is None or step.count <= 1 or not step.beta1 > 0:
        return math.nan, math.nan
    grad, after = (
        (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).to(torch.float64) for t in (state.grad, state.exp_avg)
    )
    if step.maximize:
        grad = -grad
    before = (after - (1 - step.beta1) * grad) / step.beta1
    dot, square, compared = to_host([(grad * before).sum(), before.square().sum(), after.square().sum()])
    return (dot, square) if square > _DRAWN_OUT**2 * compared else (math.nan, math.nan)
