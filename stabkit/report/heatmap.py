"""The heatmap's data: tensors in model order by steps, one number a cell, small enough for a page.

A cell stands for one tensor over a few steps. It shows the most extreme value in there, seldom a mean: by its logarithm,
and by how far it is from the tensor's own past.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import METRICS, Array
from stabkit.report.cells import Cells, cells_of
from stabkit.report.downsample import Buckets
from stabkit.report.past import PAST, forward, median_and_scatter, scatter_inside
from stabkit.runlog import RunLog, TensorInfo

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
_LEAST_SPREAD = 0.02
"""In decades: a spread of less than 5 % counts as 5 %, or a very steady tensor would light up at nothing."""
_MAD_TO_SIGMA = 1.4826
_LOG10_OF_E = 0.4342944819032518
MISSING, ZERO, NONFINITE, LOWEST, HIGHEST = 0, 1, 65_535, 2, 65_534
"""Codes of a level; those from LOWEST to HIGHEST are logarithms between the figure's `low` and `high`."""
UNKNOWN = -128
"""The code of a deviation without a past; else tenths of a robust standard deviation, at most 12.7 of them."""


def heatmap(run: RunLog, first: int = 1, last: int | None = None, quick: bool = False) -> dict[str, Any] | None:
    """The figure of one optimizer's tensors; None where nothing was recorded per tensor.

    Args:
        run: The run.
        first: The first step to show; the weights at entry, step 0, are no step.
        last: The last one; None for all there are. What is held against its past has one before `first` too.
        quick: Whether one quantity is enough, to have something to look at soon.
    """
    steps = run.stream.tensor_steps
    metrics = [name for name in QUANTITIES if run.has(name, "tensor")]
    # A gradient norm before clipping is what one asks for; the one after it only stands in where that is missing.
    metrics = [name for name in metrics if not (name == "grad_norm_used" and "grad_norm" in metrics)]
    metrics = metrics[:1] if quick else metrics
    begin = int(np.searchsorted(steps, max(first, 1)))
    end = len(steps) if last is None else int(np.searchsorted(steps, last, "right"))
    if end <= begin or not metrics:
        return None
    shown = Buckets.of(steps[begin:end], _COLUMNS)
    before = int(np.searchsorted(steps, max(shown.first - PAST * shown.width, 1)))
    buckets = Buckets.at(steps[before:end], shown.first - PAST * shown.width, shown.width)
    cells, broken = cells_of(run, metrics, buckets, before)
    order, named = modules(run.tensors)
    past = len(buckets.filled) - len(shown.filled)
    drawn = [_quantity(name, cells[name], broken, past, shown, order) for name in metrics]
    if not quick and {"grad_nonfinite", "weight_nonfinite"} & set(run.stream.columns):
        drawn.append(_nonfinite(broken[past:], shown, order))
    names = [run.tensors[index].name for index in order]
    facts = {"first": shown.first, "width": shown.width, "columns": shown.count, "last": int(steps[end - 1])}
    return {**facts, "tensors": names, "modules": named, "quantities": drawn, "optimizer": run.index}


def modules(tensors: Sequence[TensorInfo]) -> tuple[list[int], list[dict[str, Any]]]:
    """The order to draw tensors in, and the modules they fold into.

    A module is a name up to its first number (`model.layers.3`), or its first part. Tensors are in the model's order, or in the
    log's where that is not told, but those of one module stand together.

    Returns:
        Indices into `tensors`, and for each module its name, its first row and how many rows it has.
    """
    members: dict[str, list[int]] = {}
    known = all(tensor.place >= 0 for tensor in tensors)
    for index in sorted(range(len(tensors)), key=lambda i: tensors[i].place if known else i):
        members.setdefault(_module(tensors[index].name), []).append(index)
    order: list[int] = []
    found = []
    for name, indices in members.items():
        found.append({"name": name, "first": len(order), "count": len(indices)})
        order += indices
    return order, found


def _module(name: str) -> str:
    numbered = re.match(r"(?:[^.]*\.)*?\d+(?=\.)", name)
    return numbered[0] if numbered else name.split(".", 1)[0]


def _quantity(name: str, cells: Cells, broken: Array, past: int, shown: Buckets, order: list[int]) -> dict[str, Any]:
    """One quantity; the first `past` of the buckets are not shown, only held against."""
    extreme, deviation = (found[past:] for found in _most_extreme(cells))
    bad = (broken[past:] > 0) | np.isinf(cells.low[past:]) | np.isinf(cells.high[past:])
    logs = _log10(extreme)
    known = logs[np.isfinite(logs) & ~bad]
    tenths = np.clip(np.round(10 * deviation), -127, 127)
    codes = np.where(np.isnan(tenths) | bad, UNKNOWN, tenths).astype(np.int8)
    return {
        "metric": name,
        "label": QUANTITIES[name],
        "definition": METRICS[name, "tensor"].definition,
        **_levels(extreme, logs, known, bad, shown, order),
        "deviation": _packed(codes, shown, order, UNKNOWN),
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


def _most_extreme(cells: Cells) -> tuple[Array, Array]:
    """Of each cell's lowest and highest value the one further from the tensor's own past; and how far, in spreads.

    A highest value is held against the highest ones before: of many values one is always far out.
    """
    inside, _ = median_and_scatter(forward(scatter_inside(_rough_log10(cells.some))))
    sides = []
    for extreme in (cells.low, cells.high):
        logs = _rough_log10(extreme)
        level, scatter = median_and_scatter(forward(logs))
        sides.append((logs - level) / np.maximum(_MAD_TO_SIGMA * np.maximum(scatter, inside), _LEAST_SPREAD))
    below, above = sides
    rises = ~(np.abs(below) > np.abs(above))
    return np.where(rises, cells.high, cells.low), np.where(rises, above, below)


def _log10(values: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(np.log10(np.where((values > 0) & np.isfinite(values), values, np.nan)))


def _rough_log10(values: Array) -> NDArray[np.float32]:
    """With 24 bits, enough for what is shown in tenths: a fraction of the time, and of the memory where medians are sought."""
    with np.errstate(all="ignore"):
        logs = np.log(np.where((values > 0) & np.isfinite(values), values, np.nan))
    return (logs * _LOG10_OF_E).astype(np.float32)


def _packed(codes: NDArray[Any], buckets: Buckets, order: list[int], empty: int) -> str:
    """base64 of [tensors, buckets], little-endian, buckets without a row filled in."""
    whole = np.full((len(order), buckets.count), empty, codes.dtype)
    whole[:, buckets.filled] = codes[:, order].T
    return base64.b64encode(whole.astype(whole.dtype.newbyteorder("<")).tobytes()).decode()
