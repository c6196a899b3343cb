"""Makes one stream out of what each rank recorded of an optimizer.

A rank holds whole tensors (data parallel), shards of them, or other tensors than its neighbours (pipeline). A sharded tensor's
columns are merged over the ranks of one complete copy, each as `metric.TENSOR_COLUMNS` says; further copies are the same
numbers again and are not added. Numbers of the whole step are those of the lowest rank that has them, with three exceptions:
the loss is the mean over the ranks, a step is skipped where any skipped it, and where ranks hold different parts of the model
the norms are worked out from the merged columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import TENSOR_COLUMNS, Array
from stabkit.runlog.columns import LazyColumns, OrMissing, of_rows
from stabkit.runlog.record import Layout, TensorInfo
from stabkit.runlog.stream import Steps, Stream

__all__ = ["Part", "merge"]

_MERGE = {column.name: column.merge for column in TENSOR_COLUMNS}
_NORMS = {"grad_norm": "grad_sumsq", "grad_norm_used": "grad_used_sumsq", "weight_norm": "weight_sumsq",
          "update_norm": "update_sumsq", "applied_update_norm": "applied_update_sumsq"}  # fmt: skip
"""Step metrics that are the root of a column's sum over the tensors."""

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """What one rank recorded of an optimizer.

    Attributes:
        rank: The rank.
        stream: Its records.
        layouts: Its layouts, None for one that is lost.
        numbers: int64 [k], the layout of each row of the stream's tensor columns.
        closed: Whether it closed its log at the end; False of one that was killed, or is still running.
    """

    rank: int
    stream: Stream
    layouts: Sequence[Layout | None]
    numbers: Index
    closed: bool = True


def merge(parts: Sequence[Part]) -> tuple[Stream, list[str]]:
    """One stream of the whole model, and what there is to say of it.

    Args:
        parts: What each rank recorded, lowest rank first.
    """
    first = parts[0].stream
    steps: Steps = np.unique(np.concatenate([part.stream.steps for part in parts]))
    table = _Tables(parts)
    values = _step_values(parts, steps)
    if table.spread:
        values = _with_norms(values, table, steps)
    stream = Stream(
        steps=steps,
        step_values=values,
        group_values=_group_values(parts, steps),
        tensors=table.tensors,
        tensor_steps=table.steps,
        columns=table.columns,
        optimizer=first.optimizer,
        implementation=first.implementation,
        options=first.options,
        missing=first.missing,
    )
    return stream, [*_endings(parts, steps), *table.notes]


def _step_values(parts: Sequence[Part], steps: Steps) -> Mapping[str, Array]:
    names = dict.fromkeys(name for part in parts for name in part.stream.step_values)
    at = [np.searchsorted(steps, part.stream.steps) for part in parts]

    def every(name: str) -> Array:
        """[ranks, steps], NaN where a rank has no such step."""
        found = np.full((len(parts), len(steps)), np.nan)
        for row, where, part in zip(found, at, parts, strict=True):
            if name in part.stream.step_values:
                row[where] = part.stream.step_values[name]
        return found

    def read(name: str) -> Array:
        values = every(name)
        if name in ("loss", "loss_sum"):
            return _mean(values, every("loss_reduction") > 0 if "loss_reduction" in names else ~np.isnan(values))
        if name in ("skipped", "loss_reduction"):
            return _largest(values)
        return _first_known(values)

    return LazyColumns(tuple(names), read)


def _group_values(parts: Sequence[Part], steps: Steps) -> dict[str, Array]:
    values: dict[str, Array] = {}
    for part in reversed(parts):  # the lowest rank has the last word
        for name, own in part.stream.group_values.items():
            wide = max(own.shape[1], values[name].shape[1] if name in values else 0)
            found = np.full((len(steps), wide), np.nan)
            if name in values:
                found[:, : values[name].shape[1]] = values[name]
            found[np.searchsorted(steps, part.stream.steps), : own.shape[1]] = own
            values[name] = found
    return {name: values[name] for name in parts[0].stream.group_values if name in values} | values


def _first_known(values: Array) -> Array:
    """Of [ranks, n], the value of the lowest rank that has one."""
    row = np.argmax(~np.isnan(values), axis=0)
    found: Array = values[row, np.arange(values.shape[1])]
    return found


def _mean(values: Array, seen: NDArray[np.bool_]) -> Array:
    """Of [ranks, n], the mean over the ranks that saw one; a NaN that was seen is no missing value."""
    count = seen.sum(axis=0)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        total: Array = np.where(seen, values, 0.0).sum(axis=0) / count
    return np.where(count > 0, total, np.nan)


def _largest(values: Array) -> Array:
    largest: Array = np.fmax.reduce(values, axis=0)
    return largest


def _with_norms(recorded: Mapping[str, Array], table: _Tables, steps: Steps) -> LazyColumns:
    columns = OrMissing(table.columns, (len(table.steps), len(table.tensors)))

    def read(name: str) -> Array:
        return _norm(name, recorded, columns, table.steps, steps) if name in _NORMS else recorded[name]

    return LazyColumns(tuple(dict.fromkeys([*recorded, *_NORMS])), read)


def _norm(name: str, recorded: Mapping[str, Array], columns: Mapping[str, Array], measured: Steps, steps: Steps) -> Array:
    """A norm of the whole step from the columns; where those do not tell, what was recorded (the norm a clip call found)."""
    values = np.array(recorded[name]) if name in recorded else np.full(len(steps), np.nan)
    rows = np.isin(measured, steps)
    squares = columns[_NORMS[name]][rows]
    if name.startswith("grad"):
        # A tensor that the optimizer passed over has no columns of its gradient, and none of its weights afterwards.
        idle = np.isnan(columns["grad_nonfinite"][rows]) & np.isnan(columns["weight_nonfinite"][rows])
        squares = np.where(idle, 0.0, squares)
        squares[idle.all(axis=1)] = np.nan
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.sqrt(squares.sum(axis=1))
    at = np.searchsorted(steps, measured[rows])
    values[at] = np.where(np.isnan(total), values[at], total)
    return values


class _Tables:
    """The tensor columns of all ranks together.

    Attributes:
        steps: int64 [k], the steps any rank measured.
        tensors: Every tensor, whole, in order of appearance.
        spread: Whether the ranks hold different parts of the model.
        columns: float64 [k, tensors] each; NaN where no copy of a tensor is complete.
        notes: What is incomplete.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        infos: dict[str, TensorInfo] = {}
        for info in (info for part in parts for info in part.stream.tensors):
            infos.setdefault(info.name, replace(info, replica=0, shards=1))
        self.tensors = tuple(infos.values())
        self.steps: Steps = np.unique(np.concatenate([part.stream.tensor_steps for part in parts]))
        self.notes: list[str] = []
        self._position = {name: i for i, name in enumerate(infos)}
        self._named = [{info.name for info in part.stream.tensors} for part in parts]
        self.spread = len(set(map(frozenset, self._named))) > 1
        self._rows = [np.searchsorted(self.steps, part.stream.tensor_steps) for part in parts]
        self._blocks = self._plan()
        names = dict.fromkeys(name for part in parts for name in part.stream.columns)
        self.columns = LazyColumns(tuple(names), self._read, part=self._part)

    def _plan(self) -> list[tuple[Index, Index, list[tuple[int, Index, Index]]]]:
        """Blocks of (rows, tensors, and for each shard: part, its own rows and tensors), each to be merged as one."""
        held = np.full((len(self._parts), len(self.steps)), -1)
        place = np.zeros_like(held)
        for own, where, rows, part in zip(held, place, self._rows, self._parts, strict=True):
            own[rows], where[rows] = part.numbers, np.arange(len(rows))
        patterns, member = np.unique(held, axis=1, return_inverse=True)
        blocks = []
        for number, pattern in enumerate(patterns.T.tolist()):
            rows = np.flatnonzero(member.ravel() == number)
            copies, lost = self._copies(pattern)
            if lost:
                self._note_lost(lost, rows)
            for shards, names in copies.items():
                columns = np.array([self._position[name] for name in names], dtype=np.int64)
                sources = [(i, place[i, rows], self._columns_of(i, names)) for i in shards]
                blocks.append((rows, columns, sources))
        return blocks

    def _columns_of(self, i: int, names: Iterable[str]) -> Index:
        position = {info.name: column for column, info in enumerate(self._parts[i].stream.tensors)}
        return np.array([position[name] for name in names], dtype=np.int64)

    def _copies(self, pattern: Sequence[int]) -> tuple[dict[tuple[int, ...], list[str]], list[str]]:
        """Which parts make up a complete copy of each tensor, and the tensors of which none is complete.

        Args:
            pattern: The layout number of each part, -1 where it has no record.
        """
        holders: dict[str, dict[int, list[tuple[int, int]]]] = {}
        for i, (number, part) in enumerate(zip(pattern, self._parts, strict=True)):
            layout = part.layouts[number] if 0 <= number < len(part.layouts) else None
            infos = layout.tensors if layout else part.stream.tensors if number >= 0 else ()
            for info in (info for info in infos if info.name in self._named[i]):  # a layout that fits no record names nothing
                holders.setdefault(info.name, {}).setdefault(info.replica, []).append((i, info.shards))
                self.spread = self.spread or info.shards > 1
        complete: dict[tuple[int, ...], list[str]] = {}
        lost = []
        for name, copies in holders.items():
            whole = (tuple(i for i, _ in shards) for _, shards in sorted(copies.items()) if len(shards) >= shards[0][1])
            chosen = next(whole, None)
            if chosen is None:
                lost.append(name)
            else:
                complete.setdefault(chosen, []).append(name)
        return complete, lost

    def _note_lost(self, names: list[str], rows: Index) -> None:
        first, last = int(self.steps[rows[0]]), int(self.steps[rows[-1]])
        when = f"steps {first} to {last}" if last > first else f"step {first}"
        what = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"
        self.notes.append(f"{when}: not every shard of {what} was recorded; what is missing of them is not made up")

    def _read(self, name: str) -> Array:
        return self._part((name,), 0, len(self.steps))[name]

    def _part(self, names: Iterable[str], begin: int, end: int) -> dict[str, Array]:
        end = min(end, len(self.steps))
        merged = {name: np.full((max(end - begin, 0), len(self.tensors)), np.nan) for name in names}
        held = [self._part_of_rank(i, merged, begin, end) for i in range(len(self._parts))]
        for rows, columns, sources in self._blocks:
            low, high = np.searchsorted(rows, [begin, end]).tolist()
            for name, table in merged.items() if high > low else ():
                shards = [held[i][1][name][np.ix_(own[low:high] - held[i][0], places)] for i, own, places in sources
                          if name in held[i][1]]  # fmt: skip
                if len(shards) == len(sources):
                    one = shards[0] if len(shards) == 1 else _merged(_MERGE.get(name, ""), shards)
                    table[np.ix_(rows[low:high] - begin, columns)] = one
        return merged

    def _part_of_rank(self, i: int, names: Iterable[str], begin: int, end: int) -> tuple[int, Mapping[str, Array]]:
        """What a rank itself recorded of some rows of the whole, and which of its own rows is the first of that."""
        first, stop = np.searchsorted(self._rows[i], [begin, end]).tolist()
        return first, of_rows(self._parts[i].stream.columns, names, first, stop)


def _merged(rule: str, shards: list[Array]) -> Array:
    """One column of several shards. In a sum NaN stays NaN: it was there, or one shard is not known."""
    merged: Any
    if rule == "sum":
        with np.errstate(invalid="ignore", over="ignore"):
            merged = np.sum(shards, axis=0)
    elif rule in ("max", "min"):
        merged = (np.fmax if rule == "max" else np.fmin).reduce(shards, axis=0)
    else:
        merged = np.full_like(shards[0], np.nan)
    found: Array = merged
    return found


def _endings(parts: Sequence[Part], steps: Steps) -> list[str]:
    """Which ranks ended before the others. In a run that is still going on they are up to a step apart."""
    end, over = int(np.max(steps, initial=0)), any(part.closed for part in parts)
    notes = []
    for part in parts:
        last = int(np.max(part.stream.steps, initial=0))
        if last < end - (not over):
            what = f"ended at step {last}" if last else "recorded no step"
            notes.append(f"rank {part.rank} {what}, others went on to step {end}")
        elif over and not part.closed:
            notes.append(f"rank {part.rank} ended after step {last} without closing its log: was it killed? Or it still runs")
    return notes


def joined_events(events: Mapping[int, Sequence[Mapping[str, Any]]]) -> tuple[Mapping[str, Any], ...]:
    """The lowest rank's events, and of the others what it does not say itself, with their rank; by time."""
    (_, first), *others = events.items()
    known = {_said(event) for event in first}
    joined = list(first)
    for rank, own in others:
        for event in own:
            if event.get("event") not in _OWN and _said(event) not in known:
                known.add(_said(event))
                joined.append({**event, "rank": rank})
    times = [event.get("time") for event in joined]
    if all(isinstance(time, (int, float)) for time in times):
        joined.sort(key=lambda event: event["time"])  # as they are: a whole number may be too large for a float
    return tuple(joined)


_OWN = ("open", "close", "facts", "layout", "attempt")
"""Events that every rank has of its own."""


def _said(event: Mapping[str, Any]) -> str:
    return repr(sorted((key, value) for key, value in event.items() if key not in ("time", "attempt")))
