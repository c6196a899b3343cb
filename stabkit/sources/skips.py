"""Which steps were skipped, out of what logs count: flags, counts since the last row, or counts since the beginning."""

from __future__ import annotations

import numpy as np

from stabkit.metric import Array
from stabkit.runlog.stream import Steps
from stabkit.sources.columns import plain

__all__ = ["skipped_steps"]


def skipped_steps(column: str, steps: Steps, values: Array) -> Array:
    """Of each step, 1 where it was skipped, 0 where it was not, NaN where the log does not say.

    A row every ten steps that counts three skipped ones does not say which: that is NaN. One that counts none, or all ten,
    does.

    Args:
        column: The name of the column.
        steps: int64 [n].
        values: float64 [n], as logged.
    """
    known = np.flatnonzero(np.isfinite(values))
    found = np.full(len(values), np.nan)
    if not len(known):
        return found
    counted, at = values[known], steps[known]
    between = np.diff(at, prepend=at[0] - _first_interval(at))
    if _since_the_last_row(column) or not _grows(counted):
        count = counted
        flags = not _since_the_last_row(column) and bool(np.all((counted == 0) | (counted == 1)))
        between = np.ones_like(between) if flags else between
    else:
        count = np.diff(counted, prepend=0.0)
    found[known] = np.where(count == 0, 0.0, np.where(count >= between, 1.0, np.nan))
    return found


def _since_the_last_row(column: str) -> bool:
    """Whether a column counts since the row before, as Megatron's does."""
    return plain(column).startswith("number_of_skipped")


def _grows(counted: Array) -> bool:
    """Whether it is a count since the beginning: it never falls, and goes beyond 1."""
    return bool(np.all(np.diff(counted) >= 0) and counted[-1] > 1)


def _first_interval(at: Steps) -> int:
    """How many steps the first row stands for: as many as the usual one, but no more than there can have been."""
    usual = int(np.median(np.diff(at))) if len(at) > 1 else 1
    return max(1, min(usual, int(at[0]))) if at[0] > 0 else 1
