"""A run as read back: series of steps and tables of steps by tensors, whoever wrote the log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stabkit.errors import MissingMetricError, UsageError
from stabkit.metric import METRICS, Array, Scope
from stabkit.runlog.columns import OrMissing
from stabkit.runlog.record import TensorInfo
from stabkit.runlog.stream import Series, Steps, Stream, Table, beside

__all__ = ["RunLog", "Series", "Steps", "Stream", "Table"]


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
        scalars: What the user logged, and what stands beside the records: name -> (steps, values).
        notes: What the reader had to say: damage, overlaps, attempts.
        ranks: Where several processes recorded the run: the streams of each by itself, by rank. `streams` are then theirs
            merged: sums over the shards of a tensor, the mean of the losses.
        previous: Reads the attempt before this one, when it is called; None where there is none.
        memo: What was worked out of this very view, kept for whoever asks again; a view made of it begins with none.
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
    ranks: Mapping[int, tuple[Stream, ...]] = field(default_factory=dict)
    previous: Callable[[], RunLog | None] = field(default=lambda: None, repr=False, compare=False)
    memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        counts = f"{len(self.steps)} steps, {len(self.tensors)} tensors" if self.streams else "nothing recorded"
        return f"RunLog({self.path!r}: {counts}, recorded by {self.source})"

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
        """The same run seen through another of its optimizers. Raises UsageError where there is none of that index."""
        if not 0 <= index < len(self.streams):
            raise UsageError(f"{self._name} has optimizers 0 to {len(self.streams) - 1}; there is no optimizer {index}")
        return replace(self, index=index)

    def until(self, step: int) -> RunLog:
        """The run as it was known after a step: what a rule running live would have seen."""
        later = self.steps > step
        times = self.stream.step_values.get("time")
        end = float(times[later][0]) if times is not None and later.any() else math.inf
        return replace(
            self,
            streams=tuple(stream.until(step) for stream in self.streams),
            events=tuple(event for event in self.events if _known_by(event, step, end)),
            scalars={name: (at[at <= step], values[at <= step]) for name, (at, values) in self.scalars.items()},
            ranks={rank: tuple(stream.until(step) for stream in streams) for rank, streams in self.ranks.items()},
        )

    def has(self, metric: str, scope: Scope = "step") -> bool:
        """Whether the quantity was recorded at least once: whether `series`, or for a tensor `table`, has it."""
        if scope == "tensor":
            found = METRICS.get((metric, "tensor"))
            needed = found.columns if found else ()
            if metric == "update_ratio":  # of the two updates it may rest on, one is enough
                update = "update_sumsq" if self.stream.measured("update_sumsq") else "applied_update_sumsq"
                needed = (update, "weight_sumsq")
            return bool(needed) and all(self.stream.measured(column) for column in needed)
        if scope == "layer":
            return bool(self._layers(metric))
        if scope == "group":
            return not np.all(np.isnan(self.stream.group_values.get(metric, math.nan)))
        return self._has_step(metric) or self.has(metric, "group") or metric in self.scalars

    def series(self, metric: str, tensor: str | None = None, group: int = 0) -> Series:
        """One quantity over the steps.

        Args:
            metric: A name of the vocabulary, or of a scalar the user logged.
            tensor: For a quantity of one tensor; None asks for that of the whole step.
            group: The parameter group, for quantities kept per group, such as `lr`.

        Raises:
            MissingMetricError: it was not recorded; the message names what would have recorded it.
            UsageError: there is no such group.
            KeyError: there is no such tensor.
        """
        if tensor is not None:
            return self.table(metric).series(tensor)
        if self._has_step(metric):
            basis = self._basis_of_steps() if metric == "update_ratio" else ""
            return Series(metric, None, self._unit(metric, "step"), self.steps, self._step_values(metric), basis)
        if self.has(metric, "group"):
            values = self.stream.group_values[metric]
            groups = values.shape[1]
            if not 0 <= group < groups:
                raise UsageError(f"{self._name} has parameter groups 0 to {groups - 1}; there is no group {group}")
            return Series(metric, None, self._unit(metric, "group"), self.steps, values[:, group])
        if metric in self.scalars:
            return Series(metric, None, "", *self.scalars[metric])
        raise self._missing(metric, "step")

    def table(self, metric: str) -> Table:
        """One quantity over the steps and tensors; for a quantity of groups or of layers, over those.

        Raises:
            MissingMetricError: it was not recorded; the message names what would have recorded it.
        """
        if self.has(metric, "group"):
            values = self.stream.group_values[metric]
            names = tuple(f"group{i}" for i in range(values.shape[1]))
            return Table(metric, self._unit(metric, "group"), self.steps, names, values)
        if layers := self._layers(metric):
            return beside(metric, self._unit(metric, "layer"), layers)
        found = METRICS.get((metric, "tensor"))
        if found is None or found.derive is None or not self.has(metric, "tensor"):
            raise self._missing(metric, "tensor")
        numel = np.array([tensor.numel for tensor in self.tensors], dtype=np.float64)
        shape = (len(self.stream.tensor_steps), len(self.tensors))
        with np.errstate(invalid="ignore", over="ignore"):
            values = found.derive(OrMissing(self.stream.columns, shape), numel)
        names = tuple(tensor.name for tensor in self.tensors)
        basis = self._basis() if metric == "update_ratio" else ""
        return Table(metric, found.unit, self.stream.tensor_steps, names, values, basis)

    def by_rank(self, metric: str, group: int = 0) -> Table:
        """One quantity of the whole step as each process recorded it, such as the loss of its own data.

        Args:
            metric: A name of the vocabulary.
            group: The parameter group, for quantities kept per group.

        Returns:
            Columns "rank0", "rank1", ...; of a run of one process, one column. NaN where a rank has no such step.

        Raises:
            MissingMetricError: no rank recorded it.
        """
        values = np.full((len(self.steps), max(len(self.ranks), 1)), np.nan)
        seen = [replace(self, streams=streams, ranks={}, scalars={}) for streams in self.ranks.values()] or [self]
        holders = [(column, own) for column, own in enumerate(seen) if self.index < len(own.streams) and own.has(metric)]
        if not holders:
            raise self._missing(metric, "step")
        for column, own in holders:
            series = own.series(metric, group=group)
            values[np.searchsorted(self.steps, series.steps), column] = series.values
        names = tuple(f"rank{rank}" for rank in self.ranks or (0,))
        return Table(metric, self._unit(metric, "step"), self.steps, names, values)

    def _layers(self, metric: str) -> dict[str, tuple[Steps, Array]]:
        """A quantity of layers as it stands beside the records: layer -> (steps, values)."""
        prefix = f"{metric}/"
        known = (metric, "layer") in METRICS
        return {name.removeprefix(prefix): of for name, of in self.scalars.items() if known and name.startswith(prefix)}

    def plot(self, *metrics: str, tensor: str | None = None, height: int | None = None) -> Any:
        """The run for a notebook to show: the report, or given names of quantities their curves.

        Arguments, result and errors: `stabkit.notebook.plot`.
        """
        import stabkit  # the front door: a log knows nothing of what draws it

        return stabkit.plot(self, *metrics, tensor=tensor, height=height)

    @property
    def _name(self) -> str:
        return self.path or "this run"

    def _has_step(self, metric: str) -> bool:
        """Whether a step metric was recorded at least once. A loss that was NaN from the first step on was."""
        values = self.stream.step_values
        if metric == "update_ratio":
            updates = {"update_norm", "applied_update_norm"} & values.keys()
            known = metric in values or ("weight_norm" in values and bool(updates))
            return known and not np.all(np.isnan(self._step_values(metric)))
        if metric in ("loss", "loss_sum") and metric in values and "loss_reduction" in values:
            return bool(np.any(values["loss_reduction"] > 0) or not np.all(np.isnan(values[metric])))
        return metric in values and not np.all(np.isnan(values[metric]))

    def _step_values(self, metric: str) -> Array:
        values = self.stream.step_values
        if metric == "update_ratio" and metric not in values:
            applied, intended = self._updates_of_steps()
            ratio: Array = np.where(np.isnan(applied), intended, applied)
            return ratio / np.where(values["weight_norm"] == 0, np.nan, values["weight_norm"])
        return values[metric]

    def _updates_of_steps(self) -> tuple[Array, Array]:
        """Norms of the applied and of the intended update of every step, NaN where missing."""
        nothing = np.full(len(self.steps), np.nan)
        values = self.stream.step_values
        return values.get("applied_update_norm", nothing), values.get("update_norm", nothing)

    def _basis_of_steps(self) -> str:
        """Which update the ratios of the steps rest on."""
        return _basis(*self._updates_of_steps())

    def _basis(self) -> str:
        """Which update the ratios of the tensors rest on."""
        shape = (len(self.stream.tensor_steps), len(self.tensors))
        columns = OrMissing(self.stream.columns, shape)
        return _basis(columns["applied_update_sumsq"], columns["update_sumsq"])

    def _unit(self, metric: str, scope: Scope) -> str:
        known = METRICS.get((metric, scope))
        return known.unit if known else ""

    def _missing(self, metric: str, scope: Scope) -> MissingMetricError:
        other: Scope = "tensor" if scope == "step" else "step"
        known = next((METRICS[metric, of] for of in (scope, "group", other, "layer") if (metric, of) in METRICS), None)
        if known is None:
            names = sorted({name for name, _ in METRICS} | set(self.scalars))
            return MissingMetricError(f"there is no quantity called {metric!r}; known are {', '.join(names)}")
        asked = "layer" if (known.scope, scope) == ("layer", "tensor") else scope  # one asks for both by `table`
        kind = f"per {asked}"
        if known.scope not in (asked, "group"):
            advice = f'series("{metric}")' if known.scope == "step" else f'table("{metric}")'
            return MissingMetricError(f"{metric} is not a quantity {kind}; ask for {advice}")
        if not len(self.steps):
            return MissingMetricError(f"{self._name} holds no {metric}: no step has been recorded yet")
        reasons = dict.fromkeys(self.stream.missing[n] for n in (*known.columns, metric) if n in self.stream.missing)
        because = f" ({'; '.join(reasons)})" if reasons else ""
        recorder = f"it is recorded by {known.recorded_by}"
        return MissingMetricError(f"{self._name} holds no {metric} {kind}{because}; {recorder}")

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


def _basis(applied: Array, intended: Array) -> str:
    """Which of two updates a ratio rests on that takes the applied one where it can."""
    if np.all(np.isnan(applied)):
        return "intended"
    return "applied where it was measured, else intended" if np.any(np.isnan(applied) & ~np.isnan(intended)) else "applied"


def _known_by(event: Mapping[str, Any], step: int, end: float) -> bool:
    """Whether an event was there when a step was over; `end` is the time of the following one."""
    number, when = event.get("step", event.get("first_step")), event.get("time")
    if isinstance(number, int):
        return number <= step
    return not isinstance(when, (int, float)) or when < end
