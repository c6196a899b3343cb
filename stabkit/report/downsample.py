"""Fewer points for a picture, none of the extremes lost: a spike of one step in 100,000 is still there.

A picture has room for a few hundred places side by side. Each place, a *bucket*, keeps its smallest and its largest
number and whether anything in it was not a number. Taking every n-th value, or means, would lose what the reader looks for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import Array

__all__ = ["Buckets", "extremes", "keep"]

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Buckets:
    """Steps put into buckets of equal width, so that a picture's axis of steps is straight.

    Attributes:
        first: The first step of the first bucket.
        width: Steps in a bucket.
        count: How many buckets there are.
        filled: int64 [m]: the buckets that hold at least one row, increasing.
        starts: int64 [m]: the first row of each of these.
        rows: How many rows there are.
    """

    first: int
    width: int
    count: int
    filled: Rows
    starts: Rows
    rows: int

    @classmethod
    def of(cls, steps: Rows, most: int) -> Buckets:
        """At most `most` buckets for increasing steps; no narrower than the steps usually lie apart."""
        if not len(steps):
            return cls.at(steps, 0, 1)
        first, reach = int(steps[0]), int(steps[-1] - steps[0]) + 1
        usual = int(np.median(np.diff(steps))) if len(steps) > 1 else 1
        return cls.at(steps, first, max(-(-reach // most), usual, 1))

    @classmethod
    def at(cls, steps: Rows, first: int, width: int) -> Buckets:
        """Buckets of a given width, the first of which begins at a given step, for increasing steps from there on."""
        filled, starts = np.unique((steps - first) // width, return_index=True)
        count = int(filled[-1]) + 1 if len(filled) else 0
        return cls(first, width, count, filled.astype(np.int64), starts.astype(np.int64), len(steps))


def extremes(values: Array, starts: Rows) -> tuple[Array, Array]:
    """Smallest and largest number of each bucket.

    Args:
        values: float64 [n] or [n, tensors].
        starts: The first row of each bucket, increasing, from 0.

    Returns:
        Two arrays [buckets] or [buckets, tensors]; NaN only where the whole bucket is NaN.
    """
    ends = [*starts[1:].tolist(), len(values)]
    parts = [values[start:end] for start, end in zip(starts.tolist(), ends, strict=True)]  # `reduceat` is 7 times slower
    low, high = ([extreme.reduce(part, axis=0) for part in parts] for extreme in (np.fmin, np.fmax))
    return np.array(low), np.array(high)


def keep(values: Array, most: int) -> Rows:
    """Which rows of a series to draw.

    Args:
        values: float64 [n].
        most: About how many rows may be kept; of `n` rows or fewer all are.

    Returns:
        Increasing row numbers: the first and the last row and, of each bucket of rows, the smallest and the largest
        finite value and the first value that is not finite.
    """
    rows = len(values)
    if rows <= most:
        return np.arange(rows, dtype=np.int64)
    starts = np.unique(np.linspace(0, rows, max(most // 3, 1), endpoint=False).astype(np.int64))
    bucket = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, rows)))
    finite = np.isfinite(values)
    lowest = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
    highest = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
    kept = [np.array([0, rows - 1])]
    for wanted in (finite & (values == lowest[bucket]), finite & (values == highest[bucket]), ~finite):
        where = np.flatnonzero(wanted)
        kept.append(where[np.unique(bucket[where], return_index=True)[1]])
    return np.unique(np.concatenate(kept)).astype(np.int64)
