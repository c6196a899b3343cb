"""Turns what was seen of one optimizer between two steps into one `StepRecord`."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks.clip import ClipCall
from stabkit.hooks.gradients import GradientLedger, signatures
from stabkit.hooks.loss import LossWindow
from stabkit.hooks.optimizer import count_of, group_values, has_known_formula, parameters_of, states_of
from stabkit.hooks.statistics import AFTER_COLUMNS, BEFORE_COLUMNS, TensorState, measure_after, measure_before
from stabkit.hooks.transfer import to_host
from stabkit.metric import TENSOR_COLUMNS, Array
from stabkit.runlog import Group, StepRecord

__all__ = ["StepRecorder"]

_PLACE = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
_BEFORE = [_PLACE[name] for name in BEFORE_COLUMNS]
_AFTER = [_PLACE[name] for name in AFTER_COLUMNS]
_SNAPSHOT_BELOW = 0.1
"""A tensor whose RMS is below this many learning rates is copied before the step: its weights before the step cannot be worked
back from those after it, because the update was so much larger that rounding has wiped them out."""


class StepRecorder:
    """The steps of one optimizer.

    Args:
        optimizer: The optimizer.
        every: Measure the tensors of every so-manieth step.
        exact_updates: Copy all weights before each measured step, so that the applied update is measured.
    """

    def __init__(self, optimizer: Optimizer, every: int = 1, exact_updates: bool = False) -> None:
        self.optimizer = optimizer
        self.every = every
        self.exact_updates = exact_updates
        self.parameters = parameters_of(optimizer)
        self.ledger = GradientLedger(self.parameters)
        self.window = LossWindow()
        self.clip: ClipCall | None = None
        self._at_backward: list[Any] = []
        self._closure = False
        self._measuring = False

    def refresh(self) -> bool:
        """Follow a change of the optimizer's parameters; whether there was one."""
        now = parameters_of(self.optimizer)
        if len(now) == len(self.parameters) and all(a is b for a, b in zip(now, self.parameters, strict=True)):
            return False
        self.parameters = now
        self.ledger = GradientLedger(now)
        return True

    def backward_begin(self) -> None:
        """A backward call begins; it may or may not reach this optimizer's parameters."""
        self._at_backward = signatures(self.parameters)
        if self.window.backward_count and all(s is None for s in self._at_backward):
            self._begin_window()  # the gradients were dropped without a step
        if self.window.backward_count:
            self.ledger.before_backward(self._at_backward)

    def backward_end(self, roots: Any) -> None:
        """A backward call is over: its loss is this optimizer's if it changed one of its gradients."""
        now = signatures(self.parameters)
        if now == self._at_backward:
            return
        self.window.add(roots)
        self.ledger.after_backward(now)

    def clip_begin(self, call: ClipCall) -> None:
        """A clipping call begins."""
        self.ledger.clip_begins(call)

    def clip_end(self, call: ClipCall) -> None:
        """A clipping call is over."""
        self.ledger.clip_ends(call)
        if call.finished and any(c is call for c in self.ledger.clipped.values()):
            self.clip = call

    def step_begin(self, step: int, closure: bool) -> None:
        """The optimizer is about to step: look at weights and moments while they are still those before the step."""
        self._closure = closure
        self._measuring = False  # until what must be seen before the step has been seen
        self._provable = self.ledger.provable()
        self._columns = np.full((len(self.parameters), len(TENSOR_COLUMNS)), np.nan)
        self._snapshots: dict[int, torch.Tensor] = {}
        if (step - 1) % self.every:
            return
        # Inside a closure's step the gradient does not exist yet: only the weights can be read.
        states, steps = states_of(self.optimizer, self.parameters, *self._per_tensor())
        if closure:
            states = [TensorState(s.param, None, s.exp_avg, s.exp_avg_sq) for s in states]
        self._columns[:, _BEFORE] = measure_before(states, steps)
        self._take_snapshots()
        self._measuring = True

    def step_end(self, step: int, attempt: int, layout: int) -> StepRecord:
        """The optimizer has stepped: measure, and begin the next window.

        Args:
            step: The step's number.
            attempt: The attempt it belongs to.
            layout: The number of the layout its tensors are in.
        """
        if self._closure:
            self._provable = self.ledger.provable()
        measured = [i for i, p in enumerate(self.parameters) if p.grad is not None and not p.grad.is_sparse]
        if self._measuring:
            self._measure(measured)
        record = StepRecord(step, attempt, layout, time=time.time(), groups=group_values(self.optimizer))
        record.applied_steps = count_of(self.optimizer)
        record.backward_count = self.window.backward_count
        self._read_scalars(record, measured)
        if self._measuring:
            self._totals(record, measured)
            record.tensors = self._columns
        self._begin_window()
        return record

    def weights(self, step: int, attempt: int, layout: int) -> StepRecord:
        """A record for step 0 that holds the weights as they are."""
        columns = np.full((len(self.parameters), len(TENSOR_COLUMNS)), np.nan)
        states, steps = states_of(self.optimizer, self.parameters, *self._per_tensor())
        bare = [TensorState(s.param, None, None, None) for s in states]
        columns[:, _BEFORE] = measure_before(bare, steps)
        return StepRecord(step, attempt, layout, time=time.time(), groups=group_values(self.optimizer), tensors=columns)

    def _per_tensor(self) -> tuple[list[Group], list[bool]]:
        groups = group_values(self.optimizer)
        sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        ascend = [bool(group.get("maximize", False)) for group in self.optimizer.param_groups]
        of_tensor = [g for g, size in enumerate(sizes) for _ in range(size)]
        return [groups[g] for g in of_tensor], [ascend[g] for g in of_tensor]

    def _take_snapshots(self) -> None:
        groups, _ = self._per_tensor()
        weight = self._columns[:, _PLACE["weight_sumsq"]]
        for i, p in enumerate(self.parameters):
            small = p.numel() and math.sqrt(weight[i] / p.numel()) < _SNAPSHOT_BELOW * abs(groups[i].lr)
            if p.grad is not None and (self.exact_updates or (small and has_known_formula(self.optimizer))):
                self._snapshots[i] = p.detach().clone()

    def _measure(self, measured: list[int]) -> None:
        states, steps = states_of(self.optimizer, self.parameters, *self._per_tensor())
        for i, snapshot in self._snapshots.items():
            states[i].before = snapshot
        for i in measured:
            if self._closure:  # m before the step, worked back from m after it
                self._momentum_after(i, states[i], steps[i])
        self._columns[np.ix_(measured, _AFTER)] = measure_after([states[i] for i in measured], [steps[i] for i in measured])
        idle = sorted(set(range(len(self.parameters))) - set(measured))
        for name in ("update_sumsq", "update_absmax", "weight_update_dot"):
            self._columns[idle, _PLACE[name]] = 0.0  # the optimizer passes over a tensor without a gradient
        self._before_clipping(measured)

    def _momentum_after(self, i: int, state: TensorState, step: Any) -> None:
        if state.exp_avg is None or state.grad is None:
            return
        sign = -1.0 if step.maximize else 1.0
        grad = state.grad.to(torch.float64).mul(sign)
        before = (state.exp_avg.to(torch.float64) - (1 - step.beta1) * grad) / step.beta1
        dot, square = to_host([(grad * before).sum(), before.square().sum()])
        self._columns[i, [_PLACE["momentum_dot"], _PLACE["momentum_sumsq"]]] = dot, square

    def _before_clipping(self, measured: list[int]) -> None:
        used, before = self._columns[:, _PLACE["grad_used_sumsq"]], self._columns[:, _PLACE["grad_sumsq"]]
        self._coefficients = self._clip_coefficients()
        sums = dict(zip(self.ledger.before_clip, to_host(list(self.ledger.before_clip.values())), strict=True))
        for i in measured:
            if not self._provable[i]:
                continue
            call = self.ledger.clipped.get(i)
            if call is None:
                before[i] = used[i]
            elif call.kind == "value":
                before[i] = sums[i] if i in sums else math.nan
            else:
                coefficient = self._coefficients.get(id(call), math.nan)
                # Of a coefficient of zero (an infinite norm) nothing can be worked back.
                before[i] = used[i] / coefficient**2 if coefficient > 0 else math.nan

    def _clip_coefficients(self) -> dict[int, float]:
        calls = {id(c): c for c in self.ledger.clipped.values() if c.kind == "norm" and c.total_norm is not None}
        norms = to_host([c.total_norm for c in calls.values() if c.total_norm is not None])
        self._total_norms = dict(zip(calls, norms, strict=True))
        return {key: min(1.0, calls[key].limit / (norm + 1e-6)) for key, norm in self._total_norms.items()}

    def _read_scalars(self, record: StepRecord, measured: list[int]) -> None:
        values = to_host([root.value for root in self.window.roots])
        record.loss, record.loss_sum, record.loss_reduction = self.window.reduce(values)
        if self.clip is None:
            return
        if self.clip.kind == "value":
            record.clip_value = self.clip.limit
            return
        record.clip_max_norm = self.clip.limit
        if not self._measuring:
            self._coefficients = self._clip_coefficients()
        record.clip_coefficient = self._coefficients.get(id(self.clip), math.nan)
        everything = all(self.ledger.clipped.get(i) is self.clip and self._provable[i] for i in measured)
        if everything and id(self.clip) in self._total_norms:
            record.grad_norm = self._total_norms[id(self.clip)]

    def _totals(self, record: StepRecord, measured: list[int]) -> None:
        def total(name: str, rows: list[int]) -> float:
            return float(np.sqrt(np.sum(self._columns[rows, _PLACE[name]]))) if rows else math.nan

        everywhere = list(range(len(self.parameters)))
        record.grad_norm_used = total("grad_used_sumsq", measured)
        before = total("grad_sumsq", measured)
        record.grad_norm = before if not math.isnan(before) else record.grad_norm
        record.weight_norm = total("weight_sumsq", everywhere)
        record.update_norm = total("update_sumsq", everywhere)

    def _begin_window(self) -> None:
        self.window = LossWindow()
        self.clip = None
        self.ledger.begin()
