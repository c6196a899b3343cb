"""How high a series has risen over its level before: what recurs is how the run is, not news."""

from __future__ import annotations

import numpy as np

from stabkit.analyzers.series import Flags, episodes
from stabkit.metric import Array

__all__ = ["WINDOW", "lasting", "spikes", "unusual"]

WINDOW = 500
"""Records looked back upon."""
OFTEN = 3
"""So many rises as high are how the run is. One or two may be the first of a trouble that has begun."""
TIMES = 2.0
"""A rise above twice what recurs is news all the same: of heavy tails (double exponential) one in 10,000 records gets there."""
LASTING = 3
"""Hard batches are drawn apart from each other; a run that was hurt stays up. So many records in a row are told"""
RARELY = 20
"""where at most one record in so many begins a run of outliers: by chance three would follow each other in one of 8,000."""


def unusual(excess: Array, out: Flags) -> Flags:
    """Of the outliers, those that are no habit of the run.

    An outlier is one where it rises above twice the third highest of the earlier rises in the last 500 records, whether those
    were outliers or not; or where it is at least the third in a row and outliers begin rarely. A rise is a run of records
    above the level.

    Args:
        excess: [n] how far each record stands above its level; NaN where that is unknown.
        out: [n] which of them stand out of the noise.
    """
    above = excess > 0
    begins = np.flatnonzero(above & ~np.append(False, above[:-1]))
    peaks = np.maximum.reduceat(np.where(above, excess, 0.0), begins) if len(begins) else np.empty(0)
    ends = np.flatnonzero(above & ~np.append(above[1:], False))
    news = np.zeros(len(excess), dtype=bool)
    for rise in np.unique(np.searchsorted(begins, np.flatnonzero(out & above), side="right") - 1).tolist():
        begin, end = int(begins[rise]), int(ends[rise]) + 1
        earlier = peaks[np.searchsorted(ends, begin - WINDOW) : rise]
        recurs = np.partition(earlier, -OFTEN)[-OFTEN] if len(earlier) >= OFTEN else 0.0
        news[begin:end] = excess[begin:end] > TIMES * recurs
    return out & (news | lasting(out))


def lasting(out: Flags, count: int = LASTING) -> Flags:
    """Whether an outlier is at least the third in a row, or the `count`th, where outliers begin rarely."""
    n = len(out)
    starts = np.cumsum(np.append(0, out & ~np.append(False, out[:-1])))
    normal = np.cumsum(np.append(0, ~out))
    here, back = np.arange(1, n + 1), np.maximum(np.arange(1, n + 1) - WINDOW, 0)
    rare = RARELY * (starts[here] - starts[back]) <= np.maximum(normal[here] - normal[back], RARELY)
    in_a_row = out.copy()
    for back_by in range(1, count):
        in_a_row[back_by:] &= out[:-back_by]
        in_a_row[:back_by] = False
    found: Flags = in_a_row & rare
    return found


def spikes(told: Flags, up: Flags, gap: int) -> list[tuple[int, int]]:
    """(first, last) index of each spike. Two things told are one where they lie close, or the series was mostly up in between.

    Args:
        told: [n] what is news.
        up: [n] where the series is still away from its level, though it may no longer stand out.
        gap: Records.
    """
    found: list[tuple[int, int]] = []
    for first, last in episodes(told):
        if found and _one(up[found[-1][1] + 1 : first], gap):
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


def _one(between: Flags, gap: int) -> bool:
    return len(between) <= gap or bool(np.mean(between) > 0.5)
