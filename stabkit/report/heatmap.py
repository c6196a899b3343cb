"""The heatmap's data: tensors in model order by steps, one number a cell, small enough for a page.

A cell stands for one tensor over a few steps. It shows the most extreme value in there, seldom a mean: by its logarithm,
and by how far it is from the tensor's own past. Long logs are read a slice at a time.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from stabkit.metric import METRICS, Array
from stabkit.report.downsample import Buckets, extremes
from stabkit.runlog import RunLog
from stabkit.runlog.columns import OrMissing, of_rows

__all__ = ["QUANTITIES", "heatmap", "modules"]

QUANTITIES = {
    "update_ratio": "Update ratio",
    "grad_norm": "Gradient norm",
    "grad_norm_used": "Gradient norm, as used",
    "rms_ratio": "Gradient over second moment",
    "exp_avg_sq_mean": "Second moment",
    "nonfinite": "Non-finite elements",
}
"""What can be chosen, and how it is called on the page."""

_COLUMNS = 400
_CELLS_AT_ONCE = 2_000_000
_SAMPLED = 12
"""Rows of a bucket from which its usual value is taken: enough for a median."""
_PAST, _LEAST_PAST = 24, 5
"""Buckets that make up a tensor's own past."""
_LEAST_SPREAD = 0.02
"""In decades: a spread of less than 5 % counts as 5 %, or a very steady tensor would light up at nothing."""
_MAD_TO_SIGMA = 1.4826
MISSING, ZERO, NONFINITE, LOWEST, HIGHEST = 0, 1, 65_535, 2, 65_534
"""Codes of a level; those from LOWEST to HIGHEST are logarithms between the figure's `low` and `high`."""
UNKNOWN = -128
"""The code of a deviation without a past; else tenths of a robust standard deviation, at most 12.7 of them."""


@dataclass
class _Cells:
    """What is known of each bucket [buckets, tensors]: its extremes, and some of its values [buckets, sampled, tensors]."""

    low: Array
    high: Array
    some: Array


def heatmap(run: RunLog) -> dict[str, Any] | None:
    """The figure of one optimizer's tensors; None where nothing was recorded per tensor."""
    first_row = int(np.searchsorted(run.stream.tensor_steps, 1))  # the weights at entry are no step
    steps = run.stream.tensor_steps[first_row:]
    order, named = modules([tensor.name for tensor in run.tensors])
    buckets = Buckets.of(steps, _COLUMNS)
    # A gradient norm before clipping is what one asks for; the one after it only stands in where that is missing.
    metrics = [name for name in QUANTITIES if run.has(name, "tensor")]
    metrics = [name for name in metrics if not (name == "grad_norm_used" and "grad_norm" in metrics)]
    if not len(steps) or not metrics:
        return None
    broken = _broken(run, buckets, first_row)
    shown = [_quantity(run, name, buckets, first_row, order, broken) for name in metrics]
    if {"grad_nonfinite", "weight_nonfinite"} & set(run.stream.columns):
        shown.append(_nonfinite(broken, buckets, order))
    names = [run.tensors[index].name for index in order]
    facts = {"first": buckets.first, "width": buckets.width, "columns": buckets.count, "last": int(steps[-1])}
    return {**facts, "tensors": names, "modules": named, "quantities": shown, "optimizer": run.index}


def modules(names: list[str]) -> tuple[list[int], list[dict[str, Any]]]:
    """The order to draw tensors in, and the modules they fold into.

    A module is a name up to its first number (`model.layers.3`), or its first part. Tensors keep the model's order, but
    those of one module stand together.

    Returns:
        Indices into `names`, and for each module its name, its first row and how many rows it has.
    """
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(_module(name), []).append(index)
    order: list[int] = []
    found = []
    for name, indices in members.items():
        found.append({"name": name, "first": len(order), "count": len(indices)})
        order += indices
    return order, found


def _module(name: str) -> str:
    numbered = re.match(r"(?:[^.]*\.)*?\d+(?=\.)", name)
    return numbered[0] if numbered else name.split(".", 1)[0]


def _quantity(run: RunLog, name: str, buckets: Buckets, first_row: int, order: list[int], nonfinite: Array) -> dict[str, Any]:
    cells = _cells(run, name, buckets, first_row)
    extreme, deviation = _most_extreme(cells)
    broken = (nonfinite > 0) | np.isinf(cells.low) | np.isinf(cells.high)
    logs = _log10(extreme)
    known = logs[np.isfinite(logs) & ~broken]
    tenths = np.clip(np.round(10 * deviation), -127, 127)
    codes = np.where(np.isnan(tenths) | broken, UNKNOWN, tenths).astype(np.int8)
    return {
        "metric": name,
        "label": QUANTITIES[name],
        "definition": METRICS[name, "tensor"].definition,
        **_levels(extreme, logs, known, broken, buckets, order),
        "deviation": _packed(codes, buckets, order, UNKNOWN),
    }


def _nonfinite(counts: Array, buckets: Buckets, order: list[int]) -> dict[str, Any]:
    """The count of broken numbers as a quantity of its own: the one that has no usual level to be held against."""
    logs = _log10(counts)
    return {
        "metric": "nonfinite",
        "label": QUANTITIES["nonfinite"],
        "definition": "NaN and infinite elements of gradients and weights",
        **_levels(counts, logs, logs[np.isfinite(logs)], np.zeros(counts.shape, np.bool_), buckets, order),
        "deviation": "",
        "total": float(counts.sum()),
    }


def _levels(
    extreme: Array, logs: Array, known: Array, broken: NDArray[np.bool_], buckets: Buckets, order: list[int]
) -> dict[str, Any]:
    """The cells' values as codes of 16 bits, the logarithms the codes lie between, and those that are usual."""
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    # Colours span what is usual: one spike must not make everything else look the same.
    usual = np.quantile(known, (0.02, 0.98)).tolist() if len(known) else [low, high]
    scale = (HIGHEST - LOWEST) / (high - low) if high > low else 0.0
    codes = np.where(np.isnan(logs), MISSING, LOWEST + np.round((np.nan_to_num(logs) - low) * scale))
    codes[extreme == 0] = ZERO
    codes[broken] = NONFINITE
    return {"low": low, "high": high, "usual": usual, "level": _packed(codes.astype(np.uint16), buckets, order, MISSING)}


def _broken(run: RunLog, buckets: Buckets, first_row: int) -> Array:
    """How many elements of gradient and weights were no numbers, at most, in each bucket [buckets, tensors]."""
    count = np.zeros((len(buckets.filled), len(run.tensors)))
    ends = np.append(buckets.starts, len(run.stream.tensor_steps) - first_row)
    for first, stop in _slices(ends, len(run.tensors)):
        begin, end = int(ends[first]), int(ends[stop])
        held = of_rows(run.stream.columns, ("grad_nonfinite", "weight_nonfinite"), first_row + begin, first_row + end)
        for values in held.values():
            count[first:stop] += np.nan_to_num(extremes(values, ends[first:stop] - begin)[1])
    return count


def _cells(run: RunLog, name: str, buckets: Buckets, first_row: int) -> _Cells:
    """Reads the quantity a slice of whole buckets at a time."""
    rows = len(run.stream.tensor_steps) - first_row
    ends = np.append(buckets.starts, rows)
    parts: list[tuple[Array, ...]] = []
    for first, stop in _slices(ends, len(run.tensors)):
        begin, end = int(ends[first]), int(ends[stop])
        values = _values(run, name, first_row + begin, first_row + end)
        starts, stops = ends[first:stop] - begin, ends[first + 1 : stop + 1] - begin
        low, high = extremes(values, starts)
        places = starts[:, None] + (np.arange(_SAMPLED)[None, :] * (stops - starts)[:, None]) // _SAMPLED
        parts.append((low, high, values[places]))
    return _Cells(*(np.concatenate(kind) for kind in zip(*parts, strict=True)))


def _slices(ends: NDArray[np.int64], tensors: int) -> Iterator[tuple[int, int]]:
    """Ranges of buckets that hold about `_CELLS_AT_ONCE` cells each."""
    room, first = max(_CELLS_AT_ONCE // max(tensors, 1), 1), 0
    while first < len(ends) - 1:
        stop = max(int(np.searchsorted(ends, ends[first] + room, "right")) - 1, first + 1)
        yield first, stop
        first = stop


def _values(run: RunLog, name: str, begin: int, end: int) -> Array:
    """The quantity at some rows [rows, tensors], worked out from those rows only."""
    stream = run.stream
    metric = METRICS[name, "tensor"]
    held = of_rows(stream.columns, metric.columns, begin, end)
    numel = np.array([tensor.numel for tensor in run.tensors], dtype=np.float64)
    assert metric.derive is not None  # every quantity of a tensor is derived from columns
    with np.errstate(all="ignore"):
        values = metric.derive(OrMissing(held, (end - begin, len(run.tensors))), numel)
    if name == "update_ratio" and "skipped" in stream.step_values:  # a skipped step has no update, rather than one of 0
        skipped = stream.steps[stream.step_values["skipped"] > 0]
        values = np.where(np.isin(stream.tensor_steps[begin:end], skipped)[:, None], np.nan, values) if len(skipped) else values
    return values


def _most_extreme(cells: _Cells) -> tuple[Array, Array]:
    """Of each cell's lowest and highest value the one further from the tensor's own past; and how far, in spreads.

    A highest value is held against the highest ones before: of many values one is always far out.
    """
    some = _log10(cells.some)
    inside = _past(_forward(_median(np.abs(some - _median(some)[:, None]))), _middle)
    sides = []
    for extreme in (cells.low, cells.high):
        logs = _log10(extreme)
        level, scatter = _past(_forward(logs), _middle, _scatter)
        sides.append((logs - level) / np.maximum(_MAD_TO_SIGMA * np.maximum(scatter, inside[0]), _LEAST_SPREAD))
    below, above = sides
    rises = ~(np.abs(below) > np.abs(above))
    return np.where(rises, cells.high, cells.low), np.where(rises, above, below)


def _past(values: Array, *measures: Callable[[Array], Array]) -> list[Array]:
    """Measures of the buckets before each one [buckets, tensors]; NaN where there are too few."""
    found = [np.full(values.shape, np.nan) for _ in measures]
    windows = sliding_window_view(values, _PAST, axis=0)[:-1] if len(values) > _PAST else None
    for of, measure in zip(found, measures, strict=True):
        for bucket in range(_LEAST_PAST, min(_PAST, len(values))):
            of[bucket] = measure(values[:bucket].T)
        if windows is not None:
            of[_PAST:] = measure(windows)
    return found


def _middle(values: Array) -> Array:
    """The median over the last axis; NaN where there is one. Four times as fast as `np.median`."""
    ordered = np.sort(values, axis=-1)
    half = (values.shape[-1] - 1) // 2
    middle = (ordered[..., half] + ordered[..., -1 - half]) / 2
    return np.where(np.isnan(ordered[..., -1]), np.nan, middle)


def _scatter(values: Array) -> Array:
    """The median distance from the median, over the last axis."""
    return _middle(np.abs(values - _middle(values)[..., None]))


def _median(values: Array) -> Array:
    """Median along axis 1 of [buckets, sampled, tensors]; NaN left out."""
    ordered = np.sort(values, axis=1)  # NaN last
    known = np.sum(~np.isnan(values), axis=1)
    places = np.maximum(known - 1, 0) // 2
    return np.asarray(np.take_along_axis(ordered, places[:, None], axis=1)[:, 0])


def _forward(values: Array) -> Array:
    """The values [buckets, tensors] with each NaN replaced by the last number before it."""
    rows = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.asarray(np.take_along_axis(values, np.maximum.accumulate(rows, axis=0), axis=0))


def _log10(values: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(np.log10(np.where((values > 0) & np.isfinite(values), values, np.nan)))


def _packed(codes: NDArray[Any], buckets: Buckets, order: list[int], empty: int) -> str:
    """base64 of [tensors, buckets], little-endian, buckets without a row filled in."""
    whole = np.full((len(order), buckets.count), empty, codes.dtype)
    whole[:, buckets.filled] = codes[:, order].T
    return base64.b64encode(whole.astype(whole.dtype.newbyteorder("<")).tobytes()).decode()
