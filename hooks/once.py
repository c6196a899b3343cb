"""Measures the tensors of one step in a single look after it: each of p, g, m and v is read once.

What was before the step follows from what is after it. With beta1 of the optimizer and g as it used it,

    m_before = (m - (1 - beta1) g) / beta1        p_before = (p + lr / bc1 * m / (d + eps)) / (1 - lr wd)

so the sums over m_before follow from those of m², g² and g m, and Σ p_before² is found on the way to the update. They are as
exact as m and p are rounded: where g outweighs m_before three thousandfold `momentum_*` are NaN, and tensors whose update could
outweigh their weights are copied before the step as they always were. Where a step leaves NaN or Inf, what was before it is
what the step before that had left, if that one was measured too.

A step that may not be taken, because a scaler decides inside a fused optimizer, is looked at before it and after it (`quick`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.optimizer import Optimizer

from stabkit.hooks.gradients import GradientLedger
from stabkit.hooks.quick import BEFORE, BOTH, Quick
from stabkit.hooks.roster import Roster
from stabkit.hooks.statistics import AdamStep
from stabkit.hooks.statistics.table import Table
from stabkit.hooks.transfer import Batch, Later
from stabkit.hooks.trust import Trust
from stabkit.metric import TENSOR_COLUMNS, Array
from stabkit.runlog import Group

__all__ = ["Once", "enough"]

Mask = NDArray[np.bool_]

_PLACE = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
_WEIGHT, _MOMENTUM, _DOT = (_PLACE[name] for name in ("weight_sumsq", "momentum_sumsq", "momentum_dot"))
_LEAST_BETA1 = 0.1
"""Below it too little of the first moment before a step is left in that after it."""


def enough(optimizer: Optimizer, roster: Roster, groups: Sequence[Group]) -> bool:
    """Whether one look after the coming step will do.

    The last step must have been measured and read by C, no scaler may have a say in this one, and what the optimizer adds to
    its first moment must be the gradient, without a decay of the weights.
    """
    scaled = getattr(optimizer, "found_inf", None) is not None or getattr(optimizer, "grad_scale", None) is not None
    if scaled or roster.left is None:
        return False
    decoupled = type(optimizer) is torch.optim.AdamW
    entries: Sequence[Mapping[str, Any]] = optimizer.param_groups
    return all(
        group.beta1 >= _LEAST_BETA1 and (group.weight_decay == 0 or decoupled or entry.get("decoupled_weight_decay", False))
        for group, entry in zip(groups, entries, strict=True)
    )


class Once(Quick):
    """The tensor columns of one step. Making one copies the weights that have to be copied, and looks at nothing else.

    Args:
        optimizer: The optimizer, about to step.
        roster: Its parameters.
        trust: Whether its update follows from its state: so far it does.
        groups: Its hyperparameters.
        batch: That of the step.
    """

    defers = True

    def __init__(self, optimizer: Optimizer, roster: Roster, trust: Trust, groups: Sequence[Group], batch: Batch) -> None:
        self._prepare(optimizer, roster, trust, batch)
        self._table = Table(roster.parameters, optimizer.state)
        for i in self._too_small(roster.squares, groups):
            if roster.parameters[i].grad is not None:
                self._table.copy(i)

    def _measure(self, steps: Sequence[AdamStep], with_gradient: Mask, skipped: bool, counts: Array) -> None:
        table = self._table
        if skipped:  # nothing has moved
            self.columns[:, BEFORE] = table.before(steps)
            super()._measure(steps, with_gradient, skipped, counts)
            return
        if with_gradient.all():
            self.columns[:, BOTH] = table.step(steps)
        else:
            self.columns[with_gradient, BOTH] = table.step(steps, with_gradient)
            self.columns[~with_gradient, BEFORE] = table.before(steps, ~with_gradient)
        self._recall(counts)
        fresh = with_gradient & (counts == 1)
        if fresh.any():  # before the step there was no moment
            self.columns[fresh, _MOMENTUM] = self.columns[fresh, _DOT] = math.nan

    def _finish_plainly(
        self, groups: Sequence[Group], counts: Sequence[float], ledger: GradientLedger, skipped: Later, carried_scale: Later
    ) -> None:
        self._recall(np.array(counts))
        super()._finish_plainly(groups, counts, ledger, skipped, carried_scale)

    def _recall(self, counts: Array) -> None:
        """What a step has made NaN or Inf was, before it, what the last step had left."""
        left = self._roster.left
        assert left is not None  # see `enough`
        for place, known in ((_WEIGHT, left.weights), (_MOMENTUM, left.momenta)):
            values = self.columns[:, place]
            if not math.isfinite(values.sum()):
                lost = ~np.isfinite(values) & (left.counts == counts - 1)
                values[lost] = known[lost]
