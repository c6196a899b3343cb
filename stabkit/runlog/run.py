"""A run as read back: series of steps and tables of steps by tensors, whoever wrote the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabkit.errors import MissingMetricError, UsageError
from stabkit.metric import METRICS, STEP_METRICS, TENSOR_METRICS, Array, Scope
from stabkit.runlog.format import COLUMN_NAMES
from stabkit.runlog.record import TensorInfo

__all__ = ["RunLog", "Series", "Stream", "Table"]

Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Series:
    """One quantity over the steps.

    Attributes:
        metric: Its name in the vocabulary; "update_norm (intended)" and the like where the definition leaves a choice.
        tensor: The tensor it belongs to, None for the whole step.
        unit: "" for a pure number.
        steps: int64 [n], increasing.
        values: float64 [n]; NaN where missing, or where the quantity itself was NaN.
    """

    metric: str
    tensor: str | None
    unit: str
    steps: Steps
    values: Array


@dataclass(frozen=True)
class Table:
    """One quantity over the steps and the tensors (or parameter groups): `values[steps, tensors]`, NaN where missing."""

    metric: str
    unit: str
    steps: Steps
    tensors: tuple[str, ...]
    values: Array

    def series(self, tensor: str) -> Series:
        """One column. Raises KeyError for an unknown tensor."""
        if tensor not in self.tensors:
            raise KeyError(tensor)
        return Series(self.metric, tensor, self.unit, self.steps, self.values[:, self.tensors.index(tensor)])


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

    def until(self, step: int) -> Stream:
        """The prefix up to and including a step, as it was known then."""
        rows, measured = self.steps <= step, self.tensor_steps <= step
        return replace(
            self,
            steps=self.steps[rows],
            step_values={name: values[rows] for name, values in self.step_values.items()},
            group_values={name: values[rows] for name, values in self.group_values.items()},
            tensor_steps=self.tensor_steps[measured],
            columns={name: values[measured] for name, values in self.columns.items()},
        )


@dataclass(frozen=True)
class RunLog:
    """One attempt of one run, seen through one of its optimizers.

    Attributes:
        path: Where it was read from, "" for a run in memory.
        source: What wrote it, such as "stabkit".
        streams: One per optimizer.
        index: The optimizer this view is about.
        attempt: Which attempt is held here, from 0.
        attempts: How many attempts the log holds.
        facts: Versions, precision and so on, as the writer noted them.
        events: Marks, faults of the recorder and layout changes, oldest first.
        scalars: What the user logged: name -> (steps, values).
        notes: What the reader had to say: damage, overlaps, attempts.
    """

    path: str = ""
    source: str = "memory"
    streams: tuple[Stream, ...] = ()
    index: int = 0
    attempt: int = 0
    attempts: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[Mapping[str, Any], ...] = ()
    scalars: Mapping[str, tuple[Steps, Array]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def stream(self) -> Stream:
        """The records of this view's optimizer."""
        return self.streams[self.index]

    @property
    def steps(self) -> Steps:
        """int64 [n]: the attempted steps, increasing, from 1."""
        return self.stream.steps

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors this optimizer updates."""
        return self.stream.tensors

    def optimizer(self, index: int) -> RunLog:
        """The same run seen through another of its optimizers."""
        return replace(self, index=index)

    def until(self, step: int) -> RunLog:
        """The run as it was known after a step: what a rule running live would have seen."""
        return replace(self, streams=tuple(stream.until(step) for stream in self.streams))

    def has(self, metric: str, scope: Scope = "step") -> bool:
        """Whether the quantity was recorded at least once."""
        if scope == "tensor":
            needed = METRICS[metric, "tensor"].columns if (metric, "tensor") in METRICS else ()
            stored = self.stream.columns
            if metric == "update_ratio":
                needed = ("update_sumsq", "weight_sumsq")
            return bool(needed) and all(name in stored and not np.all(np.isnan(stored[name])) for name in needed)
        values = self.stream.group_values if scope == "group" else self._step_values()
        return metric in values and not np.all(np.isnan(values[metric]))

    def series(self, metric: str, tensor: str | None = None, group: int = 0) -> Series:
        """One quantity over the steps.

        Args:
            metric: A name of the vocabulary, or of a scalar the user logged.
            tensor: For a quantity of one tensor; None asks for that of the whole step.
            group: The parameter group, for quantities kept per group, such as `lr`.

        Raises:
            MissingMetricError: it was not recorded.
            KeyError: there is no such tensor.
        """
        if tensor is not None:
            return self.table(metric).series(tensor)
        values = self._step_values()
        if metric in values:
            return Series(metric, None, self._unit(metric, "step"), self.steps, values[metric])
        if metric in self.stream.group_values:
            return Series(metric, None, "", self.steps, self.stream.group_values[metric][:, group])
        if metric in self.scalars:
            return Series(metric, None, "", *self.scalars[metric])
        raise self._missing(metric, "step")

    def table(self, metric: str) -> Table:
        """One quantity over the steps and tensors; for a group quantity, over the groups.

        Raises:
            MissingMetricError: it was not recorded.
        """
        if (metric, "group") in METRICS and metric in self.stream.group_values:
            values = self.stream.group_values[metric]
            return Table(metric, "", self.steps, tuple(f"group{i}" for i in range(values.shape[1])), values)
        found = METRICS.get((metric, "tensor"))
        if found is None or found.derive is None or not self.has(metric, "tensor"):
            raise self._missing(metric, "tensor")
        numel = np.array([tensor.numel for tensor in self.tensors], dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            values = found.derive(_Absent(self.stream.columns), numel)
        return Table(metric, found.unit, self.stream.tensor_steps, tuple(t.name for t in self.tensors), values)

    def _step_values(self) -> Mapping[str, Array]:
        values = self.stream.step_values
        if "update_norm" in values and "weight_norm" in values:
            weight = np.where(values["weight_norm"] == 0, np.nan, values["weight_norm"])
            return {**values, "update_ratio": values["update_norm"] / weight}
        return values

    def _unit(self, metric: str, scope: Scope) -> str:
        known = METRICS.get((metric, scope))
        return known.unit if known else ""

    def _missing(self, metric: str, scope: Scope) -> Exception:
        known = METRICS.get((metric, scope)) or METRICS.get((metric, "group"))
        where = self.path or "this run"
        if known is None:
            names = sorted({m.name for m in (*STEP_METRICS, *TENSOR_METRICS)} | set(self.scalars))
            return MissingMetricError(f"there is no quantity called {metric!r}; known are {', '.join(names)}")
        kind = "per tensor" if scope == "tensor" else "per step"
        return MissingMetricError(f"{where} holds no {metric} {kind}; it is recorded by {known.recorded_by}")

    @classmethod
    def from_arrays(
        cls,
        steps: Any,
        step_values: Mapping[str, Any] | None = None,
        tensors: tuple[TensorInfo, ...] = (),
        columns: Mapping[str, Any] | None = None,
        group_values: Mapping[str, Any] | None = None,
        **about: Any,
    ) -> RunLog:
        """A run in memory, for logs of other tools and for tests of pure functions.

        Args:
            steps: Increasing step numbers [n].
            step_values: Step metrics by name, each [n].
            tensors: What the columns stand for.
            columns: Stored columns by name, each [n, tensors].
            group_values: Group metrics by name, each [n] or [n, groups].
            about: Other attributes of `RunLog`, such as `source`.

        Raises:
            UsageError: an array has another length than `steps`, or the steps do not increase.
        """
        index = np.asarray(steps, dtype=np.int64)
        if index.ndim != 1 or np.any(np.diff(index) <= 0):
            raise UsageError("steps must be one-dimensional and increase")
        scalars = {name: np.asarray(values, dtype=np.float64) for name, values in (step_values or {}).items()}
        groups = {name: np.asarray(values, dtype=np.float64) for name, values in (group_values or {}).items()}
        groups = {name: values[:, None] if values.ndim == 1 else values for name, values in groups.items()}
        stored = {name: np.asarray(values, dtype=np.float64) for name, values in (columns or {}).items()}
        for name, values in {**scalars, **groups, **stored}.items():
            if len(values) != len(index):
                raise UsageError(f"{name} has {len(values)} values for {len(index)} steps")
        stream = Stream(index, scalars, groups, tensors, index if stored else np.empty(0, np.int64), stored)
        return cls(streams=(stream,), **about)


class _Absent(dict[str, Array]):
    """Columns by name; one that was not stored is missing everywhere."""

    def __init__(self, columns: Mapping[str, Array]) -> None:
        super().__init__(columns)
        self._shape = next(iter(columns.values())).shape

    def __missing__(self, name: str) -> Array:
        if name not in COLUMN_NAMES:
            raise KeyError(name)
        return np.full(self._shape, np.nan)
