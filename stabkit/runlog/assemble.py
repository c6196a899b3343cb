"""Makes the arrays of one attempt out of the segments of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import Array
from stabkit.runlog.blocks import blocks_of, columns_of
from stabkit.runlog.record import GROUP_FIELDS, STEP_FIELDS, Layout
from stabkit.runlog.run import Stream
from stabkit.runlog.segments import Segment

__all__ = ["assemble"]

Index = NDArray[np.int64]
_INTERNAL = ("step", "attempt", "layout")


@dataclass(frozen=True)
class _Rows:
    """The records that count, by increasing step: record `row[i]` among the undamaged ones of all segments together."""

    steps: Index
    row: Index
    notes: tuple[str, ...] = ()


def assemble(
    steps: Sequence[Segment], tensors: Sequence[Segment], layouts: Sequence[Layout | None], attempt: int
) -> tuple[Stream, Index, list[str]]:
    """One attempt of one optimizer's stream, the layout of each of its tensor records, and what there is to say of it.

    Where steps overlap (a resume from an older checkpoint) the later record counts.

    Args:
        steps: The segments of step records, oldest first.
        tensors: The segments of tensor records, oldest first.
        layouts: What the layout numbers in the records stand for, None where that is lost.
        attempt: The attempt.
    """
    rows = _latest(steps, attempt)
    times = _gather(steps, "time", rows)
    measured = _belonging(_last_of_each(tensors, attempt), tensors, rows.steps, times)
    values = {name: _gather(steps, name, rows) for name in STEP_FIELDS if name not in _INTERNAL}
    values["applied_steps"][values["applied_steps"] < 0] = np.nan
    blocks, infos, nameless = blocks_of(tensors, measured.row, layouts)
    numbers = _gather(steps, "layout", rows)
    layout = next((layouts[int(n)] for n in numbers[::-1] if 0 <= n < len(layouts)), None)
    layout = layout or next((known for known in reversed(layouts) if known), Layout(()))
    stream = Stream(
        steps=rows.steps,
        step_values=values,
        group_values=_group_values(steps, rows),
        tensors=infos or layout.tensors,
        tensor_steps=measured.steps,
        columns=columns_of(blocks, len(measured.steps), len(infos)),
        optimizer=layout.optimizer,
        implementation=layout.implementation,
        options=dict(layout.options),
        missing=dict(layout.missing),
    )
    notes = [*rows.notes]
    if nameless:
        notes.append("the names of the tensors are lost; they are called tensor0, tensor1, ...")
    return stream, _concatenated(tensors, "layout", np.int64)[measured.row], notes


def _concatenated(segments: Sequence[Segment], name: str, dtype: Any = np.float64) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *(segment[name].astype(dtype) for segment in segments)])


def _gather(segments: Sequence[Segment], name: str, rows: _Rows) -> Array:
    return _concatenated(segments, name)[rows.row]


def _latest(segments: Sequence[Segment], attempt: int) -> _Rows:
    """The step records of an attempt that no later pass over the same steps has replaced.

    Within a pass the steps increase; a resume from an older checkpoint begins another one. A record is replaced where a
    later pass covers its step, even if the later record of that step was damaged.
    """
    mine = np.flatnonzero(_concatenated(segments, "attempt", np.int64) == attempt)
    step = _concatenated(segments, "step", np.int64)[mine]
    if not len(step):
        return _Rows(step, mine)
    begins = np.flatnonzero(np.concatenate([[True], np.diff(step) <= 0]))
    lengths = np.diff([*begins, len(step)])
    first, last = step[begins], step[begins + lengths - 1]
    distinct = np.unique(step)
    owner = np.zeros(len(distinct), np.int64)  # the last pass that covers the step
    for number, (low, high) in enumerate(zip(first, last, strict=True)):
        owner[np.searchsorted(distinct, low) : np.searchsorted(distinct, high, "right")] = number
    kept = np.repeat(np.arange(len(begins)), lengths) == owner[np.searchsorted(distinct, step)]
    order = np.argsort(step[kept], kind="stable")
    steps = step[kept][order]
    return _Rows(steps, mine[kept][order], (*_about_overlap(step[~kept], first, last), *_about_gaps(steps)))


def _about_overlap(replaced: Index, first: Index, last: Index) -> list[str]:
    notes = []
    if len(replaced):
        notes.append(
            f"{len(replaced)} records of steps {replaced.min()} to {replaced.max()} were replaced when the run was "
            "resumed from an older checkpoint; the later ones count"
        )
    if last.max() > last[-1]:
        notes.append(
            f"steps {last[-1] + 1} to {last.max()} were recorded before the run was resumed at step {first[-1]}, "
            "and it has not come as far again"
        )
    return notes


def _about_gaps(steps: Index) -> list[str]:
    gaps = np.flatnonzero(np.diff(steps) > 1)
    if not len(gaps):
        return []
    count = int(np.sum(np.diff(steps)[gaps] - 1))
    where = f"from step {steps[gaps[0]] + 1} on" if len(gaps) > 1 else f"after step {steps[gaps[0]]}"
    return [f"{count} step{'s' if count > 1 else ''} {where} {'are' if count > 1 else 'is'} not in the log"]


def _last_of_each(segments: Sequence[Segment], attempt: int) -> _Rows:
    """The last record of every step of an attempt."""
    mine = np.flatnonzero(_concatenated(segments, "attempt", np.int64) == attempt)[::-1]
    steps, where = np.unique(_concatenated(segments, "step", np.int64)[mine], return_index=True)
    return _Rows(steps, mine[where])


def _belonging(rows: _Rows, tensors: Sequence[Segment], steps: Index, times: Array) -> _Rows:
    """Without the tensors of a step whose own record is another one: a later pass may have measured fewer steps.

    A tensor record whose step record is lost stays.
    """
    if not len(steps):
        return rows
    at = np.minimum(np.searchsorted(steps, rows.steps), len(steps) - 1)
    mine = _gather(tensors, "time", rows)
    same_time = (times[at] == mine) | (np.isnan(times[at]) & np.isnan(mine))
    kept = same_time | (steps[at] != rows.steps)
    return _Rows(rows.steps[kept], rows.row[kept])


def _group_values(segments: Sequence[Segment], rows: _Rows) -> dict[str, Array]:
    """Group metrics [n, groups], NaN where a record has fewer groups."""
    widths = [segment.records.dtype["group"].shape[0] for segment in segments]
    lengths = [len(segment.rows) for segment in segments]
    groups = int(np.max(np.repeat(np.array(widths, np.int64), lengths)[rows.row], initial=0))
    values = {name: np.full((sum(lengths), groups), np.nan) for name in GROUP_FIELDS}
    ends = np.cumsum([0, *lengths])
    for segment, width, begin, end in zip(segments, widths, ends, ends[1:], strict=False):
        width = min(width, groups)  # a wider segment belongs to another attempt
        for name, table in values.items():
            table[begin:end, :width] = segment["group"][name][:, :width]
    return {name: table[rows.row] for name, table in values.items()}
