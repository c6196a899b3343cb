"""The tensor columns of a step in the case that is nearly every case, without a line of Python for each tensor.

That is: exactly torch's Adam or AdamW, whose update follows from its state and is not due for a trial, with plain float32
tensors on the CPU. Everything else is for `Measurement`, and so is whatever C turns out unable to read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch.optim.optimizer import Optimizer

from stabkit.hooks.gradients import GradientLedger
from stabkit.hooks.measurement import Measurement
from stabkit.hooks.optimizer import states_of, steps_of
from stabkit.hooks.roster import Left, Roster
from stabkit.hooks.statistics import AFTER_COLUMNS, BEFORE_COLUMNS, AdamStep
from stabkit.hooks.statistics.table import Table
from stabkit.hooks.transfer import Batch, Later
from stabkit.hooks.trust import Trust
from stabkit.metric import TENSOR_COLUMNS, Array
from stabkit.runlog import Group

__all__ = ["AFTER", "BEFORE", "BOTH", "Quick"]

BEFORE = slice(len(BEFORE_COLUMNS))
AFTER = slice(len(BEFORE_COLUMNS), len(BEFORE_COLUMNS) + len(AFTER_COLUMNS))
BOTH = slice(AFTER.stop)
assert [column.name for column in TENSOR_COLUMNS[BOTH]] == [*BEFORE_COLUMNS, *AFTER_COLUMNS]
_PLACE = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
_OF_LEFT = [_PLACE[name] for name in ("weight_sumsq", "weight_update_dot", "update_sumsq", "momentum_sumsq", "exp_avg_sumsq")]

Mask = NDArray[np.bool_]


class Quick(Measurement):
    """The tensor columns of one step. Making one measures what must be seen before the step.

    Args:
        optimizer: The optimizer, about to step.
        roster: Its parameters.
        trust: Whether its update follows from its state: so far it does.
        groups: Its hyperparameters.
        table: Its tensors, found just now.
        batch: That of the step.
    """

    _wide = True

    def __init__(
        self, optimizer: Optimizer, roster: Roster, trust: Trust, groups: Sequence[Group], table: Table, batch: Batch
    ) -> None:
        self._prepare(optimizer, roster, trust, batch)
        self._table = table
        self.signatures = table.signatures
        before = table.before(steps_of(optimizer, roster, groups))
        self.columns[:, BEFORE] = before
        for i in self._too_small(before[:, 0], groups):
            if table.rows["grad"][i]:
                table.copy(i)

    def look(self) -> list[float] | None:
        """Look at the tensors after the step (see `Measurement.look`)."""
        self._readable = self._table.look(moments=3) and self._table.complete
        return self._table.counts if self._readable else None

    def finish(
        self, groups: Sequence[Group], counts: Sequence[float], ledger: GradientLedger, skipped: Later, carried_scale: Later
    ) -> None:
        """Measure what must be seen after the step (see `Measurement.finish`)."""
        table = self._table
        if not self._readable:
            self._finish_plainly(groups, counts, ledger, skipped, carried_scale)
            return
        self.signatures = table.signatures
        with_gradient = table.rows["grad"] != 0
        self.places = np.flatnonzero(with_gradient).tolist()
        counted = np.array(counts)
        alike = counts[:1] if (counted == counts[0]).all() else counts
        steps = steps_of(self._optimizer, self._roster, groups, alike)
        self._measure(steps, with_gradient, skipped.value > 0, counted)
        if len(self.places) < len(self.columns):
            self._stand_still(np.flatnonzero(~with_gradient).tolist(), copied=len(table.copies) == len(self.places))
        table.let_go()
        if self.defers:
            ledger.close(self.signatures)
        rewritten = ledger.rewritten(self.signatures)
        self._batch.afterwards(lambda: self._unscale(carried_scale.value))
        self._batch.afterwards(lambda: self._settle(ledger, rewritten, skipped.value > 0, carried_scale.value))
        self._batch.afterwards(lambda: self._leave(counted))

    def _measure(self, steps: Sequence[AdamStep], with_gradient: Mask, skipped: bool, counts: Array) -> None:
        """Fill the columns from what the step has left."""
        if with_gradient.all():
            self.columns[:, AFTER] = self._table.after(steps)
        else:
            self.columns[with_gradient, AFTER] = self._table.after(steps, with_gradient)

    def _leave(self, counts: Array) -> None:
        """Note for the next step how large this one has left weights and moments: |p + u|² = |p|² + 2 p u + |u|²."""
        weight, dot, update, momentum, moment = (self.columns[:, place] for place in _OF_LEFT)
        self._roster.left = Left(counts, weight + 2 * dot + update, np.where(np.isnan(moment), momentum, moment))

    def _finish_plainly(
        self, groups: Sequence[Group], counts: Sequence[float], ledger: GradientLedger, skipped: Later, carried_scale: Later
    ) -> None:
        """The step has left something that C cannot read, or has made its moments."""
        self._roster.left, self._wide = None, False
        if self.defers:
            ledger.close()
        self.signatures = None
        self._states = states_of(self._optimizer, self._roster.parameters, self._trust.moments)
        for i, copy in self._table.copies.items():
            self._states[i].before = copy
        self._table.let_go()
        super().finish(groups, counts, ledger, skipped, carried_scale)
