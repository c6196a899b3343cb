"""Some measured steps of a run at a time, worked out from those alone: the tables of a long log are larger than the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from stabkit.metric import METRICS, Array
from stabkit.runlog.columns import OrMissing, of_rows
from stabkit.runlog.run import RunLog
from stabkit.runlog.stream import Steps

__all__ = ["Rows", "columns_for", "in_blocks", "rows_of_steps"]

CELLS = 2**18
"""Of a table, read at once: 2 MB, so that what is worked out of it stays in the processor's cache."""

Made = TypeVar("Made")


class Rows:
    """The measured steps in rows `begin` to `end`, not included.

    Args:
        run: The run.
        begin: The first row of `run.stream.tensor_steps`.
        end: The row after the last.
        columns: Stored columns that will be asked for; read together.

    Attributes:
        begin: The first row.
        steps: int64 [rows].
    """

    def __init__(self, run: RunLog, begin: int, end: int, columns: Iterable[str] = ()) -> None:
        begin = max(begin, 0)
        self._run, self._end = run, max(min(end, len(run.stream.tensor_steps)), begin)
        self.begin = begin
        self.steps: Steps = run.stream.tensor_steps[begin : self._end]
        self._columns = of_rows(run.stream.columns, columns, begin, self._end)
        self._made: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def table(self, metric: str) -> Array:
        """One quantity [rows, tensors]; NaN where it was not recorded."""
        return self.once(metric, lambda rows: rows._derived(metric))

    def once(self, key: Any, make: Callable[[Rows], Made]) -> Made:
        """What is made of these rows, made when it is first asked for under this key."""
        if key not in self._made:
            self._made[key] = make(self)
        made: Made = self._made[key]
        return made

    def _derived(self, metric: str) -> Array:
        found = METRICS[metric, "tensor"]
        assert found.derive is not None  # every quantity of a tensor is derived from columns
        missing = [name for name in found.columns if name not in self._columns]
        self._columns |= of_rows(self._run.stream.columns, missing, self.begin, self._end)
        numel = np.array([tensor.numel for tensor in self._run.tensors], dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            return found.derive(OrMissing(self._columns, (len(self), len(self._run.tensors))), numel)


def columns_for(metrics: Iterable[str]) -> tuple[str, ...]:
    """The stored columns that quantities of tensors are worked out from."""
    return tuple(dict.fromkeys(name for metric in metrics for name in METRICS[metric, "tensor"].columns))


def in_blocks(run: RunLog, metrics: Iterable[str], begin: int = 0) -> Iterator[Rows]:
    """All measured steps from a row on, a block at a time, oldest first.

    Args:
        run: The run.
        metrics: Quantities of tensors that will be asked for.
        begin: The first row.
    """
    at_once, columns = max(1, CELLS // max(1, len(run.tensors))), columns_for(metrics)
    for first in range(begin, len(run.stream.tensor_steps), at_once):
        yield Rows(run, first, first + at_once, columns)


def rows_of_steps(run: RunLog, first: int, last: int, metrics: Iterable[str] = ()) -> Rows:
    """The measured steps from `first` to `last`, both included."""
    begin, end = np.searchsorted(run.stream.tensor_steps, [first, last + 1]).tolist()
    return Rows(run, begin, end, columns_for(metrics))
