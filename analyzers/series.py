"""Pure functions on arrays that several rules share. All are causal: the value at i rests on entries up to i."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import Array

__all__ = ["TrailingLevel", "episodes", "lasts", "slope_of_log", "trailing_level"]

Flags = NDArray[np.bool_]
MAD_TO_SIGMA = 1.4826  # of a normal distribution


class TrailingLevel:
    """The recent level of a series and how far each value stands above it, outliers kept out of the baseline.

    Attributes:
        level: [n] median of the most recent third of the baseline, NaN before `least` values.
        score: [n] robust z-score: (value - level) / (spread + floor), the spread being that around the baseline's own trend.
    """

    def __init__(self, level: Array, score: Array) -> None:
        self.level, self.score = level, score


def trailing_level(
    values: Array, window: int, limit: float, floor: float, least: int, patience: int = 200
) -> TrailingLevel:
    """Robust z-score of each value against those before it.

    A value whose score passes `limit` is kept out of the baseline, so that a spike does not hide the next one; after `patience`
    such values in a row they become the new baseline, so that a lasting shift of level is told once.

    Args:
        values: [n]; those that are not finite have no score and never enter the baseline.
        window: How many past values make the baseline.
        limit: Score from which a value is an outlier.
        floor: Added to the scale: the smallest spread taken seriously, in the unit of `values`.
        least: How many past values are needed before a score is given.
        patience: After how many outliers in a row they are believed.
    """
    n = len(values)
    level, score = np.full(n, np.nan), np.full(n, np.nan)
    base: list[float] = []
    outliers: list[float] = []
    for i in range(n):
        x = values[i]
        if not np.isfinite(x):
            continue
        if len(base) >= least:
            level[i], spread = _level_and_spread(np.asarray(base[-window:]))
            score[i] = (x - level[i]) / (spread + floor)
            if score[i] > limit:
                outliers.append(x)
                if len(outliers) >= patience:
                    base, outliers = outliers, []
                continue
        outliers = []
        base.append(x)
        if len(base) > 4 * window:
            del base[: -2 * window]
    return TrailingLevel(level, score)


def _level_and_spread(recent: Array) -> tuple[float, float]:
    """Median of the last third, and 1.4826 MAD around Tukey's resistant line: a steep descent is a trend, not noise."""
    n = len(recent)
    third = max(1, n // 3)
    left, right = float(np.median(recent[:third])), float(np.median(recent[-third:]))
    slope = (right - left) / max(1, n - third)
    residual = recent - slope * np.arange(n)
    return right, float(MAD_TO_SIGMA * np.median(np.abs(residual - np.median(residual))))


def episodes(flags: Flags, gap: int = 0) -> list[tuple[int, int]]:
    """(first, last) index of each run of True; runs at most `gap` entries apart count as one."""
    found: list[tuple[int, int]] = []
    for i in np.flatnonzero(flags).tolist():
        if found and i - found[-1][1] - 1 <= gap:
            found[-1] = (found[-1][0], i)
        else:
            found.append((i, i))
    return found


def lasts(last: int, count: int, recent: int = 3) -> bool:
    """Whether an episode that ended at index `last` of `count` is still on: it reaches into the last few entries."""
    return last >= count - recent


def slope_of_log(values: Array, steps: Array) -> Array:
    """Least-squares slope of log(values) against steps.

    Args:
        values: [n, series], positive.
        steps: [n].

    Returns:
        [series], per step; NaN where a value is not positive or not finite.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
    logs = np.where(np.isfinite(logs), logs, np.nan)
    x = steps - steps.mean()
    slopes: Array = (x[:, None] * (logs - logs.mean(axis=0))).sum(axis=0) / np.square(x).sum()
    return slopes
