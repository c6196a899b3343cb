"""Reads a log for a heatmap: every quantity of every tensor over buckets of steps, in one pass, a slice at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import METRICS, Array
from stabkit.report.downsample import Buckets, extremes
from stabkit.runlog import RunLog
from stabkit.runlog.columns import OrMissing, of_rows

__all__ = ["Cells", "cells_of"]

_CELLS_AT_ONCE = 400_000
"""Of each column: what is worked out of a slice still lies in the processor's cache."""
_SAMPLED = 12
"""Rows of a bucket from which its usual value is taken: enough for a median."""
_BROKEN = ("grad_nonfinite", "weight_nonfinite")


@dataclass(frozen=True)
class Cells:
    """What is known of a quantity in each bucket.

    Attributes:
        low: float64 [buckets, tensors], the smallest value in there; NaN where there is none.
        high: The largest.
        some: float64 [buckets, sampled, tensors], some of the values.
    """

    low: Array
    high: Array
    some: Array


def cells_of(run: RunLog, metrics: Sequence[str], buckets: Buckets, first_row: int) -> tuple[dict[str, Cells], Array]:
    """The cells of each quantity, and how many elements of gradient and weights were no numbers, at most, in each bucket.

    Args:
        run: The run.
        metrics: Names of quantities of tensors.
        buckets: Of the tensor records from `first_row` on.
        first_row: The first record that counts.
    """
    rows = buckets.rows
    ends = np.append(buckets.starts, rows)
    shape = (len(buckets.filled), len(run.tensors))
    found = {name: Cells(np.empty(shape), np.empty(shape), np.empty((shape[0], _SAMPLED, shape[1]))) for name in metrics}
    broken = np.zeros(shape)
    columns = {column for name in metrics for column in METRICS[name, "tensor"].columns} | set(_BROKEN)
    for first, stop in _slices(ends, len(run.tensors)):
        begin, end = int(ends[first]), int(ends[stop])
        held = of_rows(run.stream.columns, columns, first_row + begin, first_row + end)
        starts, stops = ends[first:stop] - begin, ends[first + 1 : stop + 1] - begin
        places = starts[:, None] + (np.arange(_SAMPLED)[None, :] * (stops - starts)[:, None]) // _SAMPLED
        for name, cells in found.items():
            values = _values(run, name, held, first_row + begin, first_row + end)
            cells.low[first:stop], cells.high[first:stop] = extremes(values, starts)
            cells.some[first:stop] = values[places]
        for name in _BROKEN:
            if name in held:
                broken[first:stop] += np.nan_to_num(extremes(held[name], starts)[1])
    return found, broken


def _slices(ends: NDArray[np.int64], tensors: int) -> Iterator[tuple[int, int]]:
    """Ranges of buckets that hold about `_CELLS_AT_ONCE` cells each."""
    room, first = max(_CELLS_AT_ONCE // max(tensors, 1), 1), 0
    while first < len(ends) - 1:
        stop = max(int(np.searchsorted(ends, ends[first] + room, "right")) - 1, first + 1)
        yield first, stop
        first = stop


def _values(run: RunLog, name: str, held: Mapping[str, Array], begin: int, end: int) -> Array:
    """The quantity at some rows [rows, tensors], worked out from the columns of those rows."""
    stream = run.stream
    metric = METRICS[name, "tensor"]
    numel = np.array([tensor.numel for tensor in run.tensors], dtype=np.float64)
    assert metric.derive is not None  # every quantity of a tensor is derived from columns
    with np.errstate(all="ignore"):
        values = metric.derive(OrMissing(held, (end - begin, len(run.tensors))), numel)
    if name == "update_ratio" and "skipped" in stream.step_values:  # a skipped step has no update, rather than one of 0
        skipped = stream.steps[stream.step_values["skipped"] > 0]
        values = np.where(np.isin(stream.tensor_steps[begin:end], skipped)[:, None], np.nan, values) if len(skipped) else values
    return values
