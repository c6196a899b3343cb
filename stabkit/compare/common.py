"""What two runs have in common: steps, tensors and quantities, the same rows of both side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import METRICS, Array
from stabkit.runlog import RunLog
from stabkit.runlog.columns import OrMissing

__all__ = ["Pair", "pairs_of"]

Index = NDArray[np.int64]


class Pair:
    """One optimizer of each of two runs.

    Args:
        a: The first run, seen through it.
        b: The second.

    Attributes:
        steps: int64 [n] the steps both have.
        tensor_steps: int64 [k] the steps whose tensors both measured; step 0 holds the weights at entry.
        names: The tensors both have, in the first run's order: of one name and shape.
    """

    def __init__(self, a: RunLog, b: RunLog) -> None:
        self.a, self.b = a, b
        self.steps, self._rows = _meet(a.stream.steps, b.stream.steps)
        self.tensor_steps, self._tensor_rows = _meet(a.stream.tensor_steps, b.stream.tensor_steps)
        theirs = {(tensor.name, tensor.shape): column for column, tensor in enumerate(b.tensors)}
        both = [(i, theirs[t.name, t.shape]) for i, t in enumerate(a.tensors) if (t.name, t.shape) in theirs]
        self._columns = tuple(np.array(side, dtype=np.int64) for side in zip(*both, strict=True)) if both else (_NONE, _NONE)
        self.names = tuple(a.tensors[i].name for i in self._columns[0])
        self._kept: dict[tuple[str, str], tuple[Array, Array]] = {}

    def has_step(self, name: str) -> bool:
        """Whether both recorded a quantity of the step."""
        return len(self.steps) > 0 and all(run.has(name) and name in run.stream.step_values for run in (self.a, self.b))

    def of_steps(self, name: str) -> tuple[Array, Array]:
        """A quantity of the step in both runs, each [n]."""
        a, b = (run.series(name).values[rows] for run, rows in zip((self.a, self.b), self._rows, strict=True))
        return a, b

    def values(self, run: RunLog, name: str) -> Array:
        """A quantity of the step in one of the two runs over the common steps [n]; NaN where it has none."""
        rows = self._rows[0 if run is self.a else 1]
        return run.stream.step_values[name][rows] if name in run.stream.step_values else np.full(len(self.steps), np.nan)

    def has_column(self, name: str) -> bool:
        """Whether both stored a column of the tensors."""
        sides = len(self.tensor_steps) and len(self.names)
        return bool(sides) and all(run.stream.measured(name) for run in (self.a, self.b))

    def of_tensors(self, name: str) -> tuple[Array, Array]:
        """A stored column in both runs, each [k, tensors]."""
        return self._side_by_side("column", name)

    def has_table(self, name: str) -> bool:
        """Whether both have a quantity of the tensors."""
        sides = len(self.tensor_steps) and len(self.names)
        return bool(sides) and all(run.has(name, "tensor") for run in (self.a, self.b))

    def table(self, name: str) -> tuple[Array, Array]:
        """A quantity of the tensors in both runs, each [k, tensors]."""
        return self._side_by_side("table", name)

    def settings_that_differ(self, step: int) -> tuple[str, ...]:
        """The names of the group values that differ at a step."""
        row = int(np.searchsorted(self.steps, step))
        if row >= len(self.steps) or self.steps[row] != step:
            return ()
        return tuple(dict.fromkeys(name for name in self.group_names for a, b in self.group_pairs(name)
                                   if a[row] != b[row] and not np.isnan(a[row] + b[row])))

    @property
    def group_names(self) -> list[str]:
        """The numbers of parameter groups that both recorded, such as the rate."""
        return [name for name in self.a.stream.group_values if name in self.b.stream.group_values]

    def group_pairs(self, name: str) -> list[tuple[Array, Array]]:
        """A number of the groups over the common steps, each [n], of each two groups that hold the same tensors."""
        a, b = (run.stream.group_values[name][rows] for run, rows in zip((self.a, self.b), self._rows, strict=True))
        return [(a[:, i], b[:, j]) for i, j in self.groups if i < a.shape[1] and j < b.shape[1]]

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Which groups of the two hold the same tensors; in order where nothing is known of tensors."""
        columns = zip(*self._columns, strict=True)
        held = [(self.a.tensors[i].group, self.b.tensors[j].group) for i, j in columns]
        known = sorted({(i, j) for i, j in held if i is not None and j is not None})
        return known or [(i, i) for i in range(max((v.shape[1] for v in self.a.stream.group_values.values()), default=0))]

    def _side_by_side(self, kind: str, name: str) -> tuple[Array, Array]:
        sides = []
        for run, rows, columns in zip((self.a, self.b), self._tensor_rows, self._columns, strict=True):
            values = _table(run, name) if kind == "table" else np.asarray(run.stream.columns[name])
            sides.append(values[rows][:, columns])
        return sides[0], sides[1]


_NONE = np.empty(0, np.int64)


def _table(run: RunLog, name: str) -> Array:
    metric = METRICS[name, "tensor"]
    assert metric.derive is not None  # every quantity of a tensor is derived from columns
    numel = np.array([tensor.numel for tensor in run.tensors], dtype=np.float64)
    with np.errstate(all="ignore"):
        return metric.derive(OrMissing(run.stream.columns, (len(run.stream.tensor_steps), len(run.tensors))), numel)


def _meet(a: Index, b: Index) -> tuple[Index, tuple[Index, Index]]:
    """The steps both have, and their rows in each."""
    steps, rows_a, rows_b = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    return steps.astype(np.int64), (rows_a, rows_b)


def pairs_of(a: RunLog, b: RunLog) -> list[Pair]:
    """The optimizers of two runs, the first with the first and so on; as many as both have."""
    return [Pair(a.optimizer(i), b.optimizer(i)) for i in range(min(len(a.streams), len(b.streams)))]
