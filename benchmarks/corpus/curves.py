"""Arithmetic on loss curves: heights above a median, smoothing, climbs, stretches of flags."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["GAP", "RISE", "SMOOTH", "WINDOW", "Array", "excess", "logs_of", "noise_of", "smooth", "steep", "stretches"]

Array = NDArray[np.float64]
WINDOW = 101
"""Steps of a centred median."""
SMOOTH = 9
RISE, CLIMB, FLOOR = 0.05, 4.0, 0.01
GAP = 30
"""Steps between two flags that still belong together."""


def logs_of(loss: Array) -> Array:
    """Log losses; NaN where they are not finite."""
    positive = loss[np.isfinite(loss) & (loss > 0)]
    least = positive.min() if len(positive) else 1.0
    finite = np.where(np.isfinite(loss), loss, np.nan)
    return np.log(np.maximum(finite, least))


def excess(logs: Array, ahead: int = WINDOW // 2) -> tuple[Array, Array]:
    """(height above the median, robust deviation) among the 50 steps before each and `ahead` after; shorter at the borders."""
    before = WINDOW // 2
    windows = sliding_window_view(np.pad(logs, (before, ahead), constant_values=np.nan), before + 1 + ahead)
    median = _medians(windows)
    deviation = 1.4826 * _medians(np.abs(windows - median[:, None])) + FLOOR
    few = np.isfinite(windows).sum(axis=1) <= 10
    median[few] = deviation[few] = np.nan
    return logs - median, deviation


def smooth(values: Array, span: int = SMOOTH) -> Array:
    """Median of the steps around each."""
    return _medians(sliding_window_view(np.pad(values, span // 2, mode="edge"), span))


def noise_of(values: Array) -> float:
    """Robust deviation of the steps around their smoothed course."""
    return float(1.4826 * np.nanmedian(np.abs(values - smooth(values)))) + FLOOR


def steep(logs: Array) -> NDArray[np.bool_]:
    """Steps that climb by 5 % and more than 4 robust deviations of the 50 steps before: a climb begins at its first."""
    climbs = np.diff(logs, prepend=logs[:1])
    usual = np.concatenate([[np.nan], 1.4826 * _medians(_before(np.abs(climbs)))[:-1]])
    with np.errstate(invalid="ignore"):
        return np.asarray(climbs > np.log1p(RISE) + CLIMB * usual)


def _before(values: Array) -> Array:
    half = WINDOW // 2
    return sliding_window_view(np.pad(values, (half - 1, 0), constant_values=np.nan), half)


def _medians(rows: Array) -> Array:
    """The median of what is finite in each row; NaN where nothing is."""
    ordered, count = np.sort(rows, axis=1), np.isfinite(rows).sum(axis=1)
    each, last = np.arange(len(rows)), np.maximum(count - 1, 0)
    middle = (ordered[each, last // 2] + ordered[each, (last + 1) // 2]) / 2
    return np.where(count > 0, middle, np.nan)


def stretches(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(first, last) index of each run of flags, those up to GAP apart joined."""
    joined: list[tuple[int, int]] = []
    for i in np.flatnonzero(flags).tolist():
        if joined and i - joined[-1][1] <= GAP:
            joined[-1] = (joined[-1][0], i)
        else:
            joined.append((i, i))
    return joined
