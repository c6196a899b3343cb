"""Makes a RunLog of the columns that were read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stabkit.errors import UsageError
from stabkit.metric import METRICS, Array
from stabkit.runlog import RunLog, Stream
from stabkit.sources.collect import Collected
from stabkit.sources.columns import Taken, take
from stabkit.sources.rows import Ordered, latest, order
from stabkit.sources.skips import skipped_steps
from stabkit.sources.tensors import TensorColumns, tensor_columns

__all__ = ["assemble"]

Index = NDArray[np.int64]
_LARGEST = 2.0**53
_MILLISECONDS = 1e11


@dataclass(frozen=True)
class _Log:
    """All that was read of a log, and which column was taken for what."""

    collected: Collected
    name: str
    taken: Taken
    tensors: TensorColumns
    steps: Index
    ordered: Ordered
    notes: tuple[str, ...]

    def points(self, column: str, attempt: int) -> tuple[Index, Array]:
        """(steps, values) of a column in an attempt: increasing, the later of two values of one step."""
        held = self.collected.columns[column]
        rows = held.where
        mine = self.ordered.attempt[rows] == attempt
        steps = self.steps[rows[mine]]
        kept = latest(steps)
        return steps[kept], held.values[mine][kept]


def assemble(collected: Collected, name: str, mapping: Mapping[str, str] | None = None, attempt: int | None = None) -> RunLog:
    """Make the run.

    Args:
        collected: What was read.
        name: Of the log.
        mapping: Columns by quantity, as the user said.
        attempt: Which attempt, from 0; the last one by default.

    Raises:
        UsageError: the mapping names what is not there, or there is no such attempt.
    """
    taken = take(collected, mapping)
    tensors = tensor_columns(collected, taken)
    steps, known, remarks = _steps(collected, taken)
    leading = np.zeros(collected.rows, dtype=bool)
    led = taken.quantities.get("loss") or max(
        (column for quantity, column in taken.quantities.items() if quantity not in ("step", "time")),
        key=lambda column: len(collected.columns[column].rows),
        default=None,
    )
    if led is not None:
        leading[collected.columns[led].where] = True
    ordered = order(steps, known, leading)
    notes = (*collected.remarks(), *taken.notes, *remarks, *_silent_end(collected, taken), *ordered.notes.get(-1, ()))
    if led is not None:
        notes = (*notes, *_repeats(steps, ordered, collected.columns[led].where))
    log = _Log(collected, name, taken, tensors, steps, ordered, notes)
    chosen = ordered.attempts - 1 if attempt is None else attempt
    if not 0 <= chosen < ordered.attempts:
        raise UsageError(f"{name} has attempts 0 to {ordered.attempts - 1}; there is no attempt {attempt}")
    return _run(log, chosen, attempt is None)


def _run(log: _Log, attempt: int, by_default: bool) -> RunLog:
    attempts, taken = log.ordered.attempts, log.taken.quantities
    several = [f"{attempts} attempts in this log; this is the last one"] if attempts > 1 and by_default else []
    previous: Callable[[], RunLog | None] = lambda: None  # noqa: E731
    if attempt:
        previous = cache(lambda: _run(log, attempt - 1, False))
    held = {*taken.values(), *log.taken.groups, *log.tensors.names}
    others = [name for name, column in log.collected.columns.items() if name not in held and len(column.rows)]
    text = [name for name, column in log.collected.columns.items() if not len(column.rows)]
    return RunLog(
        path=log.name,
        source=log.collected.format,
        streams=(_stream(log, attempt),),
        attempt=attempt,
        attempts=attempts,
        facts={"taken": dict(taken), "guessed": sorted(log.taken.guessed), "left": others, "text": text},
        scalars={_unlike_a_quantity(name): log.points(name, attempt) for name in others},
        notes=(*log.notes, *several, *log.ordered.notes.get(attempt, ())),
        previous=previous,
    )


def _unlike_a_quantity(name: str) -> str:
    """A name for a column that was not taken for a quantity: no rule must take a `time` that is a duration for the time."""
    return f"{name} (as logged)" if any(name == metric for metric, _ in METRICS) else name


def _stream(log: _Log, attempt: int) -> Stream:
    quantities = {name: column for name, column in log.taken.quantities.items() if name not in ("step", "time")}
    points = {name: log.points(column, attempt) for name, column in quantities.items()}
    steps = _union([at for at, _ in points.values()])
    values = {name: _spread(at, found, steps) for name, (at, found) in points.items()}
    if "loss" in points:
        # The log says where it has a loss: a NaN there is one, elsewhere it is missing.
        values["loss_reduction"] = np.isin(steps, points["loss"][0]).astype(np.float64)
    if "skipped" in points:
        values["skipped"] = skipped_steps(quantities["skipped"], steps, values["skipped"])
    if "time" in log.taken.quantities:
        at, when = log.points(log.taken.quantities["time"], attempt)
        values["time"] = _spread(at, np.where(when > _MILLISECONDS, when / 1000, when), steps)
    groups = {name: values.pop(name)[:, None] for name in list(values) if (name, "group") in METRICS}
    if log.taken.groups:
        of_each = (_spread(*log.points(column, attempt), steps) for column in log.taken.groups)
        groups["lr"] = np.stack(list(of_each), axis=1)
    tensor_steps, columns = log.tensors.read(lambda column: log.points(column, attempt))
    return Stream(steps, values, groups, log.tensors.infos, tensor_steps, columns)


def _steps(collected: Collected, taken: Taken) -> tuple[Index, NDArray[np.bool_], list[str]]:
    """The step of each row, whether it has one, and what there is to say."""
    name = taken.quantities.get("step")
    if name is None:
        steps = np.arange(1, collected.rows + 1, dtype=np.int64)
        return steps, np.ones(collected.rows, dtype=bool), ["there is no column of steps: the rows are counted from 1"]
    column = collected.columns[name]
    found = column.values
    good = np.isfinite(found) & (np.abs(found) < _LARGEST) & (found == np.round(found))
    steps, known = np.zeros(collected.rows, dtype=np.int64), np.zeros(collected.rows, dtype=bool)
    steps[column.where[good]] = found[good].astype(np.int64)
    known[column.where[good]] = True
    without = int(np.sum(~known))
    return steps, known, [f"{without} row{'s have' if without > 1 else ' has'} no step: left out"] if without else []


def _repeats(steps: Index, ordered: Ordered, rows: Index) -> list[str]:
    """That steps were logged more than once without a resume, as by several processes that print to one file."""
    kept = rows[ordered.attempt[rows] >= 0]
    distinct = len(np.unique(np.stack([ordered.attempt[kept], steps[kept]]), axis=1).T)
    more = len(kept) - distinct
    return [f"{more} row{'s repeat steps' if more > 1 else ' repeats a step'} logged before: the last counts"] if more else []


def _silent_end(collected: Collected, taken: Taken) -> list[str]:
    """That the loss is empty to the end of the log, where it is: some programs write NaN so."""
    name, step = taken.quantities.get("loss"), taken.quantities.get("step")
    if name is None or step is None or collected.columns[name].empty_after < 2:
        return []
    loss, steps = collected.columns[name], collected.columns[step]
    after = steps.values[steps.where > loss.where[-1]]
    beside = steps.values[np.isin(steps.where, loss.where)]
    usual = float(np.median(np.diff(beside))) if len(beside) > 1 else 1.0
    if not len(after) or not len(beside) or after[-1] - beside[-1] <= 2 * max(usual, 1.0):
        return []
    return [
        f"{name} is empty in the last {loss.empty_after} rows, after step {beside[-1]:.0f} and up to step {after[-1]:.0f}: "
        "taken for missing, but pandas and JavaScript write NaN that way too"
    ]


def _union(many: list[Index]) -> Index:
    return np.unique(np.concatenate([np.empty(0, np.int64), *many]))


def _spread(at: Index, values: Array, steps: Index) -> Array:
    """Values at some steps as values at all of `steps`, NaN elsewhere."""
    spread = np.full(len(steps), np.nan)
    inside = np.isin(at, steps)
    spread[np.searchsorted(steps, at[inside])] = values[inside]
    return spread
