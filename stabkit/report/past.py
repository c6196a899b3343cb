"""How tensors were lately: rolling medians, and how far values lie from them, for many tensors at once.

Rows are put in order by a sorting network: whole rows are exchanged with one another, which costs a fraction of sorting
every window by itself and leaves its values where they can be looked at row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["PAST", "forward", "median_and_scatter", "scatter_inside"]

Array = NDArray[Any]
"""Of floating point numbers, of whatever width; what is found has the same."""

PAST, _LEAST = 24, 5
"""Rows that make up a past, and the fewest that do."""
_TOGETHER = 30_000
"""Numbers of a row that are exchanged together: all rows of them nearly lie in the processor's cache."""


def median_and_scatter(values: Array) -> tuple[Array, Array]:
    """The median of the `PAST` rows before each one, and their median distance from it.

    Args:
        values: [rows, columns]; NaN at the beginning of a column only, as `forward` leaves it.

    Returns:
        Two arrays [rows, columns]; NaN where there are fewer than five rows before, or one of them is NaN.
    """
    median, scatter = np.full_like(values, np.nan), np.full_like(values, np.nan)
    for row in range(_LEAST, min(PAST, len(values))):
        median[row], scatter[row] = _of_ordered(list(np.sort(values[:row], axis=0)))
    if len(values) > PAST:
        windows = sliding_window_view(values[:-1], PAST, axis=0)
        step = max(1, _TOGETHER // max(values.shape[1], 1))
        for first in range(0, len(windows), step):
            ordered = _ordered(np.moveaxis(windows[first : first + step], -1, 0))
            here = slice(PAST + first, PAST + first + step)
            median[here], scatter[here] = _of_ordered(ordered)
    unknown = np.isnan(values[np.maximum(np.arange(len(values)) - PAST, 0)])
    median[unknown] = scatter[unknown] = np.nan
    return median, scatter


def scatter_inside(values: Array) -> Array:
    """The median distance of some values from their median; of two middle ones the lower; NaN left out.

    Args:
        values: [rows, some, columns].

    Returns:
        [rows, columns]; NaN where all are.
    """
    return _lower_middle(np.abs(values - _lower_middle(values)[:, None]))


def forward(values: Array) -> Array:
    """The values [rows, columns] with each NaN replaced by the last number before it."""
    rows = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.asarray(np.take_along_axis(values, np.maximum.accumulate(rows, axis=0), axis=0))


def _of_ordered(rows: Sequence[Array]) -> tuple[Array, Array]:
    """Median, and median distance from it, of arrays that increase from one to the next, place by place.

    Below and above the median the distances are in order already, so nothing needs to be sorted again: of two increasing
    sequences A and B of n numbers each, the n smallest together are min(A[i], B[n-1-i]) (Batcher 1968), and the middle lies
    at their border.
    """
    half, odd = len(rows) // 2, len(rows) % 2
    median = rows[half] if odd else (rows[half - 1] + rows[half]) / 2
    pairs = [(median - below, above - median) for below, above in zip(rows[:half], rows[half + odd :], strict=True)]
    border = reduce(np.maximum, (np.minimum(*pair) for pair in pairs))
    return median, border if odd else (border + reduce(np.minimum, (np.maximum(*pair) for pair in pairs))) / 2


def _lower_middle(values: Array) -> Array:
    """The lower of the two middle numbers along axis 1; NaN left out, NaN where there is no number."""
    ordered = np.sort(values, axis=1)  # NaN last
    known = np.sum(~np.isnan(values), axis=1)
    places = np.maximum(known - 1, 0) // 2
    return np.asarray(np.take_along_axis(ordered, places[:, None], axis=1)[:, 0])


def _ordered(rows: Array) -> list[Array]:
    """The rows [n, ...] so that they increase, place by place; in new memory."""
    held, spare = list(np.array(rows)), np.empty(rows.shape[1:], rows.dtype)
    exchanges, order = _network(tuple(range(len(rows))))
    for low, high in exchanges:
        np.minimum(held[low], held[high], out=spare)
        np.maximum(held[low], held[high], out=held[high])
        held[low], spare = spare, held[low]
    return [held[row] for row in order]


_Network = tuple[tuple[tuple[int, int], ...], tuple[int, ...]]
"""Pairs of rows to be exchanged, the smaller one first, one after the other; and the order of rows in the end."""


@lru_cache
def _network(rows: tuple[int, ...]) -> _Network:
    """Sorts by merging halves; the first half is a power of two, for which merging is cheapest."""
    if len(rows) < 2:
        return (), rows
    half = 1 << (len(rows) - 1).bit_length() - 1
    (first, one), (second, two) = _network(rows[:half]), _network(rows[half:])
    exchanges, order = _merging(one, two)
    return first + second + exchanges, order


def _merging(one: tuple[int, ...], two: tuple[int, ...]) -> _Network:
    """Of two increasing sequences one: Batcher's odd-even merge (Knuth, The Art of Computer Programming, 5.3.4)."""
    if not one or not two:
        return (), one or two
    if len(one) == len(two) == 1:
        return ((one[0], two[0]),), one + two
    (first, odd), (second, even) = _merging(one[::2], two[::2]), _merging(one[1::2], two[1::2])
    pairs = tuple(zip(even, odd[1:], strict=False))
    rest = even[len(pairs) :] + odd[len(pairs) + 1 :]
    return first + second + pairs, (odd[0], *(row for pair in pairs for row in pair), *rest)
