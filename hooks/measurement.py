"""Measures the tensors of one optimizer around one step, in two passes: before it and after it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks.bits import Bits, ManyBits, bits_of
from stabkit.hooks.gradients import GradientLedger
from stabkit.hooks.momentum import momentum_before
from stabkit.hooks.optimizer import group_values, states_of, steps_of
from stabkit.hooks.probe import Probe
from stabkit.hooks.roster import Roster
from stabkit.hooks.signatures import Signatures
from stabkit.hooks.statistics import (
    AFTER_COLUMNS,
    BEFORE_COLUMNS,
    AdamStep,
    TensorState,
    measure_after,
    measure_before,
    measure_moves,
    measure_sizes,
)
from stabkit.hooks.transfer import Batch, Later
from stabkit.hooks.trust import Trust
from stabkit.metric import TENSOR_COLUMNS, Array
from stabkit.runlog import Group

__all__ = ["Measurement", "weights_now"]

_PLACE = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
_BEFORE = [_PLACE[name] for name in BEFORE_COLUMNS]
_AFTER = [_PLACE[name] for name in AFTER_COLUMNS]
_OF_GRADIENT = [_PLACE[name] for name in ("grad_used_sumsq", "grad_absmax", "grad_nonfinite", "grad_zeros")]
_OF_MOMENTUM = [_PLACE[name] for name in ("momentum_dot", "momentum_sumsq")]
_OF_WEIGHT = [_PLACE[name] for name in ("weight_absmax", "weight_nonfinite")]
_OF_MOVE = [_PLACE[name] for name in ("applied_update_sumsq", "weight_update_dot")]
_OF_UPDATE = [_PLACE[name] for name in ("update_sumsq", "update_absmax", "weight_update_dot")]

_ADDED = [i for i, column in enumerate(TENSOR_COLUMNS) if column.merge == "sum"]
_AFTER_ALL = [place for name, place in _PLACE.items() if name != "weight_sumsq"]
_OF_MOMENTS = [
    place for name, place in _PLACE.items() if name.startswith(("exp_avg", "momentum_", "eps_", "rms_", "unchanged_"))
]

_NOTHING = np.zeros(())

_SMALL = 0.1
"""A tensor whose RMS is below this many learning rates is copied before the step: its weights before the step cannot be worked
back from those after it, because the update was so much larger that rounding has wiped them out."""
_LARGE_DECAY = 0.5
"""The same where a step takes away more than this share of the weights."""


def weights_now(optimizer: Optimizer, roster: Roster, batch: Batch) -> Array:
    """Columns that hold the weights as they are, and nothing else, once the batch is settled."""
    columns = _blank(len(roster.owners))
    if roster.readable:
        bare = roster.held(roster.bare())
        before = measure_before(bare, steps_of(optimizer, roster, group_values(optimizer)), batch)
        batch.afterwards(lambda: columns.__setitem__((slice(None), _BEFORE), before))
        roster.squares = columns[:, _PLACE["weight_sumsq"]]  # a view: it will be filled too
    return columns


class Measurement:
    """The tensor columns of one step. Making one measures what must be seen before the step.

    Where the update follows from the optimizer's state, nothing is copied but what `_copy_weights` names; elsewhere the weights
    are copied for the time of the step. Gradients are measured after the step in the one pass that sees all else, but before
    it where the optimizer is not exactly torch's Adam: others may use them as scratch space.

    Args:
        optimizer: The optimizer, about to step.
        roster: Its parameters.
        trust: Whether its update follows from its state.
        exact_updates: Copy all weights, so that the applied update is measured.
        closure: Whether the gradient does not exist yet, because the step itself will compute it.
        batch: That of the step. The columns are filled when it is fetched.
        due: Whether the formula of the update is to be held against this step.

    Attributes:
        columns: [tensors, columns] in the order of `TENSOR_COLUMNS`.
        places: Of the tensors that had a gradient.
        unread: Places of those whose gradient was there and could not be read.
        signatures: Of the gradients at the last look at them, where they are known from it.
        defers: Whether the gradients are looked at after the step only, because the optimizer writes to none.
    """

    defers = False
    _wide = False  # whether all tensors are known to be of float32

    _states: list[TensorState]
    _bits: list[Bits | ManyBits]
    _probe: Probe | None
    _derived: bool

    def __init__(
        self, optimizer: Optimizer, roster: Roster, trust: Trust, exact_updates: bool, closure: bool, batch: Batch, due: bool
    ) -> None:
        self._prepare(optimizer, roster, trust, batch)
        self._closure = closure
        self._states = roster.held(states_of(optimizer, roster.parameters, trust.moments))
        if closure:
            for state in self._states:
                state.grad = None
        groups = group_values(optimizer)
        plain = trust.is_torch_adam and trust.derives
        self._early = not plain and not closure  # whether the gradients are measured now
        states = self._states if plain else [_without_sparse(s) for s in self._states]
        before = measure_before(states, steps_of(optimizer, roster, groups), batch)
        self._set((slice(None), _BEFORE), before)
        if self._early:
            self._measure_gradients(self._states)
        self._probe = Probe(self._states) if due else None
        on_trial = self._probe is not None and not trust.is_torch_adam
        self._copy_weights(before[:, 0], groups, exact_updates or on_trial or not self._derived)
        coarse = range(len(self._states)) if exact_updates else roster.coarse
        self._bits = bits_of([i for i in coarse if groups[roster.groups[i]].lr > 0], self._states)

    def _prepare(self, optimizer: Optimizer, roster: Roster, trust: Trust, batch: Batch) -> None:
        self._optimizer, self._roster, self._trust, self._batch = optimizer, roster, trust, batch
        self._states, self._bits, self._probe = [], [], None
        self._early = self._closure = False
        self._derived, self._variant = trust.derives, trust.variant
        self.columns = _blank(len(roster.owners))
        self.places: list[int] = []
        self.unread: list[int] = []
        self.signatures: Signatures | None = None

    def look(self) -> list[float] | None:
        """Look at the tensors after the step: the optimizer's count of each, where it is known from that."""
        return None

    def finish(
        self, groups: Sequence[Group], counts: Sequence[float], ledger: GradientLedger, skipped: Later, carried_scale: Later
    ) -> None:
        """Measure what must be seen after the step.

        Args:
            groups: The hyperparameters the step used.
            counts: The optimizer's count of steps of each parameter.
            ledger: What is known about the gradients.
            skipped: Above 0 where a scaler made the optimizer pass the step over.
            carried_scale: What a fused optimizer was told to take off the gradients.
        """
        self._batch.afterwards(lambda: self._unscale(carried_scale.value))
        if self._probe is not None:
            self._put_to_the_proof(self._probe, groups, counts, skipped)
        states = self._states_after()
        counts = [counts[i] for i in self._roster.owners]
        steps = steps_of(self._optimizer, self._roster, groups, counts, self._variant)
        self.places = [i for i, s in enumerate(states) if s.grad is not None]
        dense = [i for i in self.places if states[i].grad.layout is torch.strided]  # type: ignore[union-attr]
        if self._closure:
            for i in dense:
                momentum_before(states[i], steps[i], self._batch, functools.partial(self._set, (i, _OF_MOMENTUM)))
        if self._derived:
            self._measure_derived(states, steps, dense)
        else:
            self._measure_plainly(states, steps, dense)
        for bits in self._bits:
            bits.compare(states, self._batch, self.columns)
        found = ledger.rewritten()
        rewritten = np.flatnonzero(np.isin(self._roster.owners, found)).tolist() if found else found
        self._batch.afterwards(lambda: self._settle(ledger, rewritten, skipped.value > 0, carried_scale.value))
        self.unread = self._roster.unread()
        if self._roster.sharded or self.unread:
            self._settle_shards(states)

    def _settle_shards(self, states: Sequence[TensorState]) -> None:
        """Make the columns such that those of all shards can be merged.

        A shard of nothing adds nothing, also where FSDP1 gives it no gradient. A gradient that could not be read is missing,
        and shows as such by what is known of its weights: of a tensor without a gradient they are not told after the step.
        """
        empty = [i for i, s in enumerate(states) if not s.param.numel()]
        idle = [i for i, s in enumerate(states) if s.grad is None and i not in self.unread]
        weights = measure_sizes([states[i].param for i in self.unread], self._batch)[:, 1:3]

        def settle() -> None:
            self.columns[np.ix_(self.unread, _AFTER_ALL)] = math.nan
            self.columns[np.ix_(idle, _OF_WEIGHT)] = math.nan
            self.columns[np.ix_(self.unread, _OF_WEIGHT)] = weights
            self.columns[np.ix_(empty, _ADDED)] = 0.0

        self._batch.afterwards(settle)

    def _unscale(self, carried_scale: float) -> None:
        """Take a scale off what was measured before the optimizer did."""
        if carried_scale == 1:
            return
        self.columns[:, _PLACE["momentum_dot"]] /= carried_scale
        if self._early:
            self._unscale_gradients(carried_scale)

    def _settle(self, ledger: GradientLedger, rewritten: Sequence[int], skipped: bool, carried_scale: float) -> None:
        """All is measured: strike out what it does not mean."""
        if skipped:
            self._pass_over(carried_scale)
        if self._early:
            self.columns[rewritten, _PLACE["rms_sum"]] = math.nan  # what was summed up is not the gradient
        if self._derived and not self._trust.derives:  # it has just turned out not to follow from the state
            self.columns[:, [*_OF_UPDATE, *_OF_MOMENTS]] = math.nan
        elif self._derived and self._trust.variant != self._variant:  # or in another way
            self.columns[:, _OF_UPDATE] = math.nan
        used = self.columns[:, _PLACE["grad_used_sumsq"]]
        self.columns[:, _PLACE["grad_sumsq"]] = ledger.before_clipping(used, self._roster.owners, self._wide)
        self._roster.squares = self.columns[:, _PLACE["weight_sumsq"]]

    def _set(self, where: Any, values: Array) -> None:
        """Put values into the columns once they are there."""
        self._batch.afterwards(lambda: self.columns.__setitem__(where, values))

    def _put_to_the_proof(self, probe: Probe, groups: Sequence[Group], counts: Sequence[float], skipped: Later) -> None:
        """See whether the formula told what the step did."""
        trust = self._trust
        states = states_of(self._optimizer, self._roster.parameters, trust.moments)
        moments = trust.look(self._optimizer, states, groups)
        if moments is None:
            return
        probe.take(self._roster.held(states_of(self._optimizer, self._roster.parameters, moments)), self._batch)
        counts = [counts[i] for i in self._roster.owners]
        steps = functools.partial(steps_of, self._optimizer, self._roster, groups, counts)
        self._batch.afterwards(lambda: None if skipped.value > 0 else trust.judge(probe, moments, steps, groups))

    def _measure_derived(self, states: list[TensorState], steps: list[AdamStep], dense: list[int]) -> None:
        """All columns of an optimizer whose update follows from its state."""
        self._measure_adam(states, steps, dense, _AFTER)
        idle = [i for i, s in enumerate(states) if s.grad is None]
        self._stand_still(idle, copied=all(states[i].before is not None for i in self.places))

    def _stand_still(self, idle: Sequence[int], copied: bool) -> None:
        """The optimizer passes over tensors without a gradient; whether all the others were `copied` before the step."""
        self._set(np.ix_(idle, _OF_UPDATE), _NOTHING)
        if copied:
            self._set((idle, _PLACE["applied_update_sumsq"]), _NOTHING)

    def _measure_plainly(self, states: list[TensorState], steps: list[AdamStep], dense: list[int]) -> None:
        """What is certain of any optimizer: gradients, weights, what the step did to them, and known moments."""
        if not self._early:
            self._measure_gradients(states)
        moments = self._trust.moments
        if moments is not None and moments.second is not None:
            self._measure_adam(states, steps, dense, [place for place in _AFTER if place not in _OF_UPDATE])
        elif moments is not None:
            kept = {i: m for i in self.places if (m := states[i].exp_avg) is not None}
            self._set((list(kept), _PLACE["exp_avg_sumsq"]), measure_sizes(list(kept.values()), self._batch)[:, 0])
        self._set((slice(None), _OF_WEIGHT), measure_sizes([s.param for s in states], self._batch)[:, 1:3])
        copied = {i: s.before for i, s in enumerate(states) if s.before is not None}
        moves = measure_moves([states[i].param for i in copied], list(copied.values()), self._batch)
        self._set(np.ix_(list(copied), _OF_MOVE), moves)

    def _measure_adam(self, states: list[TensorState], steps: list[AdamStep], dense: list[int], wanted: list[int]) -> None:
        """Those of AFTER_COLUMNS that are wanted, of tensors with dense gradients; not what was measured before the step."""
        everything = len(dense) == len(states)
        after = measure_after(
            states if everything else [states[i] for i in dense],
            steps if everything else [steps[i] for i in dense],
            self._batch,
        )
        kept = [k for k, place in enumerate(_AFTER) if place in wanted and not (self._early and place in _OF_GRADIENT)]
        rows = slice(None) if everything else np.array(dense, dtype=np.intp)[:, None]
        places = [_AFTER[k] for k in kept]
        self._batch.afterwards(lambda: self.columns.__setitem__((rows, places), after[:, kept]))

    def _measure_gradients(self, states: Sequence[TensorState]) -> None:
        """The gradients as they are, sparse ones too."""
        grads = {i: s.grad for i, s in enumerate(states) if s.grad is not None}
        self._set(np.ix_(list(grads), _OF_GRADIENT), measure_sizes(list(grads.values()), self._batch))

    def _unscale_gradients(self, carried_scale: float) -> None:
        self.columns[:, _PLACE["grad_used_sumsq"]] /= carried_scale**2
        self.columns[:, _PLACE["grad_absmax"]] /= carried_scale

    def norm(self, column: str, places: Sequence[int] | None = None) -> float:
        """The root of a column's sum over the tensors, or over some of them; NaN where any lacks it."""
        values = self.columns[:, _PLACE[column]]
        values = values if places is None or len(places) == len(values) else values[list(places)]
        return math.sqrt(total) if (total := float(values.sum())) >= 0 and len(values) else math.nan

    def total(self, column: str) -> float:
        """A column's sum over the tensors that had a gradient."""
        return float(self.columns[self.places, _PLACE[column]].sum())

    def _pass_over(self, carried_scale: float) -> None:
        """Make the columns those of a step that was not taken."""
        self.columns[:, _OF_MOMENTS] = math.nan
        if not self._trust.derives:
            return  # that nothing moved is measured, as the gradients were before
        self.columns[:, _OF_UPDATE] = 0.0
        if self._early:
            return
        # A fused optimizer takes the scale off the gradients only in a step that it takes.
        self._unscale_gradients(carried_scale)

    def _states_after(self) -> list[TensorState]:
        states = self._states
        # The step may have made gradients, or its moments; one by hand may make new moments every time.
        if self._early or self._closure or any(s.exp_avg is None for s in states):
            copies = [s.before for s in states]
            states = self._roster.held(states_of(self._optimizer, self._roster.parameters, self._trust.moments))
            for state, copy in zip(states, copies, strict=True):
                state.before = copy
        self._states = []  # the copies of weights must not outlive the step
        return states

    def _copy_weights(self, squares: Array, groups: Sequence[Group], all_of_them: bool) -> None:
        for i in range(len(self._states)) if all_of_them else self._too_small(squares, groups):
            state = self._states[i]
            if not self._derived or state.grad is not None or self._closure:
                state.before = state.param.detach().clone()

    def _too_small(self, squares: Array, groups: Sequence[Group]) -> list[int]:
        """Places of the tensors that must be copied, given the sums of squares of the weights."""
        squares = np.where(np.isnan(squares), self._roster.squares, squares)  # as good as today's, where those come later
        small = [(_SMALL * group.lr) ** 2 for group in groups]
        decaying = [abs(group.lr * group.weight_decay) > _LARGE_DECAY for group in groups]
        if len(groups) == 1:
            needed = squares < small[0] * self._roster.sizes
        else:
            needed = squares < np.array(small)[self._roster.groups] * self._roster.sizes
        if any(decaying):
            needed |= np.array(decaying)[self._roster.groups]
        found: list[int] = np.flatnonzero(needed).tolist()
        return found


def _blank(tensors: int) -> Array:
    return np.full((tensors, len(TENSOR_COLUMNS)), np.nan)


def _without_sparse(state: TensorState) -> TensorState:
    """The same, with a gradient that can be read along with the parameter, or none."""
    sparse = state.grad is not None and state.grad.layout is not torch.strided
    return TensorState(state.param, None, state.exp_avg, None) if sparse else state
