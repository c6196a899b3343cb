"""Pure functions on arrays that several rules share. All are causal: the value at i rests on entries up to i."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import Array

__all__ = ["TrailingLevel", "episodes", "first_true", "slope_of_log", "trailing_level"]

Flags = NDArray[np.bool_]
MAD_TO_SIGMA = 1.4826  # of a normal distribution


class TrailingLevel:
    """The recent level of a series and how far each value stands above it, outliers kept out of the baseline.

    Attributes:
        level: [n] median of the last `window` values before each that were not outliers; NaN before `least` of them.
        score: [n] robust z-score: (value - level) / (1.4826 MAD + floor).
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
            recent = np.asarray(base[-window:])
            level[i] = np.median(recent)
            spread = MAD_TO_SIGMA * np.median(np.abs(recent - level[i]))
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


def episodes(flags: Flags, gap: int = 0) -> list[tuple[int, int]]:
    """(first, last) index of each run of True; runs at most `gap` entries apart count as one."""
    found: list[tuple[int, int]] = []
    for i in np.flatnonzero(flags).tolist():
        if found and i - found[-1][1] - 1 <= gap:
            found[-1] = (found[-1][0], i)
        else:
            found.append((i, i))
    return found


def first_true(flags: Flags) -> int | None:
    """Index of the first True, None where there is none."""
    where = np.flatnonzero(flags)
    return int(where[0]) if len(where) else None


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
