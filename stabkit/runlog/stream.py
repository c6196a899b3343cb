"""The records of one optimizer as arrays, and the two shapes a quantity is handed out in: a series and a table."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import Array
from stabkit.runlog.columns import of_rows, of_tensor, part_of
from stabkit.runlog.record import TensorInfo

__all__ = ["Series", "Steps", "Stream", "Table", "beside"]

Steps = NDArray[np.int64]

_LOOKED_AT = 16, 512
"""Rows looked at together: first, for most columns that have a number have one there, and from then on."""


@dataclass(frozen=True)
class Series:
    """One quantity over the steps.

    Attributes:
        metric: Its name in the vocabulary.
        tensor: The tensor it belongs to, None for the whole step.
        unit: "" for a pure number.
        steps: int64 [n], increasing.
        values: float64 [n]; NaN where missing, or where the quantity itself was NaN.
        basis: Which definition holds, where the vocabulary leaves a choice: of update_ratio "applied" or "intended".
    """

    metric: str
    tensor: str | None
    unit: str
    steps: Steps
    values: Array
    basis: str = ""


@dataclass(frozen=True)
class Table:
    """One quantity over the steps and the tensors (or parameter groups, or layers).

    Attributes:
        metric: Its name in the vocabulary.
        unit: "" for a pure number.
        steps: int64 [n], increasing; a run's first row may be step 0, the weights at entry.
        tensors: Names of the tensors, or of layers, or "group0", "group1", ...
        values: float64 [n, tensors]; NaN where missing, or where the quantity itself was NaN.
        basis: As in `Series`.
    """

    metric: str
    unit: str
    steps: Steps
    tensors: tuple[str, ...]
    values: Array
    basis: str = ""

    def series(self, tensor: str) -> Series:
        """One column. Raises KeyError for an unknown tensor."""
        if tensor not in self.tensors:
            near = difflib.get_close_matches(tensor, self.tensors, n=3, cutoff=0.4)
            raise KeyError(f"there is no tensor {tensor!r}" + (f"; near it are {', '.join(near)}" if near else ""))
        column = self.values[:, self.tensors.index(tensor)]
        return Series(self.metric, tensor, self.unit, self.steps, column, self.basis)


@dataclass(frozen=True)
class Stream:
    """The records of one optimizer, as plain arrays.

    Attributes:
        steps: int64 [n], the attempted steps, increasing.
        step_values: Step metrics by name, each float64 [n].
        group_values: Group metrics by name, each float64 [n, groups].
        tensors: The tensors, in column order.
        tensor_steps: int64 [k], the steps whose tensors were measured.
        columns: Stored columns by name, each float64 [k, tensors].
        optimizer: Class name of the optimizer, "" where unknown.
        implementation: "foreach", "fused" or "single_tensor", "" where unknown.
        options: Such as {"amsgrad": False, "maximize": False}.
        missing: Columns and step metrics that this optimizer cannot have, each with the reason.
        batches: What the user called the batches of a step, where it was told.
    """

    steps: Steps
    step_values: Mapping[str, Array] = field(default_factory=dict)
    group_values: Mapping[str, Array] = field(default_factory=dict)
    tensors: tuple[TensorInfo, ...] = ()
    tensor_steps: Steps = field(default_factory=lambda: np.empty(0, np.int64))
    columns: Mapping[str, Array] = field(default_factory=dict)
    optimizer: str = ""
    implementation: str = ""
    options: Mapping[str, bool] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    batches: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    _measured: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def until(self, step: int) -> Stream:
        """The prefix up to and including a step, as it was known then."""
        rows, measured = self.steps <= step, int(np.searchsorted(self.tensor_steps, step, "right"))
        return replace(
            self,
            steps=self.steps[rows],
            step_values={name: values[rows] for name, values in self.step_values.items()},
            group_values={name: values[rows] for name, values in self.group_values.items()},
            tensor_steps=self.tensor_steps[:measured],
            columns=part_of(self.columns, 0, measured),
            batches={number: names for number, names in self.batches.items() if number <= step},
        )

    def only(self, tensor: int) -> Stream:
        """The same steps with the records of one tensor only, given by its index."""
        return replace(self, tensors=(self.tensors[tensor],), columns=of_tensor(self.columns, tensor))

    def measured(self, column: str) -> bool:
        """Whether a stored column holds at least one number. Of a long log no more is read than it takes to see one."""
        if column not in self._measured:
            few, many = _LOOKED_AT
            begins = [0, *range(few, len(self.tensor_steps), many)]
            self._measured[column] = column in self.columns and any(
                not np.all(np.isnan(of_rows(self.columns, (column,), begin, begin + (many if begin else few))[column]))
                for begin in begins
            )
        return self._measured[column]


def beside(metric: str, unit: str, columns: Mapping[str, tuple[Steps, Array]]) -> Table:
    """A table of series that need not have the same steps, by the names of its columns."""
    steps = np.unique(np.concatenate([at for at, _ in columns.values()]))
    values = np.full((len(steps), len(columns)), np.nan)
    for column, (at, numbers) in enumerate(columns.values()):
        values[np.searchsorted(steps, at), column] = numbers
    return Table(metric, unit, steps, tuple(columns), values)
