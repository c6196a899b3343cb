"""Pure functions on arrays that several rules share. All are causal: the value at i rests on entries up to i."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from stabkit.metric import Array

__all__ = [
    "MAD_TO_SIGMA",
    "Flags",
    "Indices",
    "TrailingLevel",
    "episodes",
    "known_max",
    "known_median",
    "lasts",
    "log_of",
    "mostly",
    "moving_max",
    "previous",
    "spacing",
    "trailing_level",
    "trailing_slopes",
]

Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]
MAD_TO_SIGMA = 1.4826  # of a normal distribution
MOST_AT_ONCE = 512


def log_of(values: Array) -> Array:
    """Natural logarithm; NaN where a value is not positive or not finite."""
    logs: Array = np.log(np.where((values > 0) & np.isfinite(values), values, np.nan))
    return logs


def known_max(values: Array, axis: int = 0) -> Array:
    """Largest value along an axis, NaN left out; NaN where all are. `np.nanmax` would warn there."""
    return np.asarray(np.fmax.reduce(values, axis=axis, initial=np.nan))


def known_median(values: Array) -> Array:
    """Median of each column [series] of [n, series], NaN left out; NaN where all are. `np.nanmedian` would warn there."""
    known = ~np.isnan(values).all(axis=0)
    medians = np.full(values.shape[1], np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        medians[known] = np.nanmedian(values[:, known], axis=0) if known.any() else np.nan
    return medians


@dataclass(frozen=True)
class TrailingLevel:
    """The recent level of a series and how far each value stands above it, outliers kept out of the baseline.

    Attributes:
        level: [n] median of the most recent third of the baseline, NaN before `least` values.
        score: [n] robust z-score: (value - level) / (spread + floor), the spread being that around the baseline's own trend;
            NaN where both are 0: without any noise there is nothing to measure against.
        excess: [n] value - level; of the first `least` values how far they lie off their own trend, known once all are there.
    """

    level: Array
    score: Array
    excess: Array


def trailing_level(
    values: Array, window: int, limit: float, floor: float, least: int, patience: int = 200, steps: Indices | None = None
) -> TrailingLevel:
    """Robust z-score of each value against those before it.

    A value whose score passes `limit` is kept out of the baseline, so that a spike does not hide the next one; after `patience`
    such values in a row they become the new baseline, so that a lasting shift of level is told once. Where nothing was recorded
    for longer than the baseline reaches back, it says nothing of what comes then: the level is learnt anew.

    Args:
        values: [n]; those that are not finite have no score and never enter the baseline.
        window: How many past values make the baseline.
        limit: Score from which a value is an outlier.
        floor: Added to the scale: the smallest spread taken seriously, in the unit of `values`.
        least: How many past values are needed before a score is given.
        patience: After how many outliers in a row they are believed.
        steps: [n] at which they were recorded; one after the other where left out.
    """
    borders = [0, *_after_gaps(values, steps, window, least), len(values)] if steps is not None else [0, len(values)]
    parts = [_between_gaps(values[a:b], window, limit, floor, least, patience) for a, b in pairwise(borders)]
    return TrailingLevel(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("level", "score", "excess")))


def _after_gaps(values: Array, steps: Indices, window: int, least: int) -> list[int]:
    """The rows before which nothing was recorded for longer than the baseline that was full enough to judge reaches back."""
    where = np.flatnonzero(np.isfinite(values))
    known, found, begin = steps[where], [], 0
    for i in (np.flatnonzero(known[least:] - known[least - 1 : -1] > known[least - 1 : -1] - known[:-least]) + least).tolist():
        if i - begin >= least and known[i] - known[i - 1] > known[i - 1] - known[max(begin, i - window)]:
            found.append(int(where[i]))
            begin = i
    return found


def _between_gaps(values: Array, window: int, limit: float, floor: float, least: int, patience: int) -> TrailingLevel:
    level, score = np.full(len(values), np.nan), np.full(len(values), np.nan)
    where = np.flatnonzero(np.isfinite(values))
    x = values[where]
    base, i, ahead = x[:least][-window:], least, 1
    while i < len(x):
        # Take the next few values to be no outliers, which fixes the baseline of each, and believe it up to the first that is.
        block = x[i : i + ahead] if len(base) == window else x[i : i + 1]
        levels, spreads = _level_and_spread(sliding_window_view(np.concatenate([base, block[:-1]]), len(base)))
        scores = _score(block, levels, spreads + floor)
        outliers = np.flatnonzero(scores > limit)
        usual = int(outliers[0]) if len(outliers) else len(block)
        level[where[i : i + usual]], score[where[i : i + usual]] = levels[:usual], scores[:usual]
        base = np.concatenate([base, block[:usual]])[-window:]
        i, ahead = i + usual, min(2 * ahead, MOST_AT_ONCE)
        if len(outliers):
            # As long as outliers follow each other the baseline stands still.
            run = x[i : i + patience]
            scores = _score(run, levels[usual], spreads[usual] + floor)
            inside = np.flatnonzero(~(scores > limit))
            count = int(inside[0]) if len(inside) else len(run)
            level[where[i : i + count]], score[where[i : i + count]] = levels[usual], scores[:count]
            base = run[-window:] if count == patience else base
            i, ahead = i + count, 8
    with np.errstate(over="ignore", invalid="ignore"):
        excess = values - level
    excess[where[:least]] = _off_trend(x[:least])
    return TrailingLevel(level, score, excess)


def _off_trend(values: Array) -> Array:
    """[n] how far each value lies above the line through all of them; nothing where there are too few for one."""
    if len(values) < 3:
        return np.zeros(len(values))
    residual = _residual(values[None], *_thirds(values[None]))[0]
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(residual - _medians(residual[None])[0])


def _level_and_spread(recent: Array) -> tuple[Array, Array]:
    """Of each row of [m, n]: median of the last third, and 1.4826 MAD around Tukey's resistant line.

    A steep descent is a trend, not noise.
    """
    left, right = _thirds(recent)
    residual = _residual(recent, left, right)
    with np.errstate(over="ignore", invalid="ignore"):
        spread = MAD_TO_SIGMA * _medians(np.abs(residual - _medians(residual)[:, None]))
    return right, spread


def _thirds(rows: Array) -> tuple[Array, Array]:
    """Medians of the first and of the last third of each row of [m, n]."""
    third = max(1, rows.shape[1] // 3)
    return _medians(rows[:, :third]), _medians(rows[:, -third:])


def _residual(rows: Array, left: Array, right: Array) -> Array:
    """Each row of [m, n] less the line from `left` to `right`, medians of its thirds."""
    n = rows.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(rows - ((right - left) / max(1, n - max(1, n // 3)))[:, None] * np.arange(n))


def _medians(rows: Array) -> Array:
    """Median of each row, none of them NaN: a tenth of the time of `np.median`, which is made for more than this."""
    n = rows.shape[1]
    middle = np.partition(rows, (n // 2 - 1, n // 2) if n % 2 == 0 else n // 2, axis=1)
    return np.asarray(middle[:, n // 2] if n % 2 else (middle[:, n // 2 - 1] + middle[:, n // 2]) / 2)


def _score(values: Array, level: Array, scale: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray((values - level) / np.where(scale > 0, scale, np.nan))


def trailing_slopes(logs: Array, steps: Array, begin: Indices, end: Indices) -> Array:
    """Least-squares slopes against `steps` over the rows begin..end, both included, of each pair.

    Args:
        logs: [n, series].
        steps: [n].
        begin: [m] first rows.
        end: [m] last rows.

    Returns:
        [m, series], per step; NaN where a window holds a NaN or a single row.
    """
    shape = (len(end), logs.shape[1])
    sum_x, sum_xx, sum_y, sum_xy = np.zeros(len(end)), np.zeros(len(end)), np.zeros(shape), np.zeros(shape)
    longest = int((end - begin).max(initial=-1)) + 1
    for back in range(longest):
        rows = np.maximum(end - back, begin)
        inside = end - back >= begin
        x = np.where(inside, steps[rows] - steps[end], 0.0)  # from the window's own end: large step numbers cost no digits
        y = np.where(inside[:, None], logs[rows], 0.0)
        sum_x, sum_xx, sum_y, sum_xy = sum_x + x, sum_xx + x * x, sum_y + y, sum_xy + x[:, None] * y
    count = (end - begin + 1).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes: Array = (sum_xy - (sum_x / count)[:, None] * sum_y) / (sum_xx - sum_x**2 / count)[:, None]
    return slopes


def episodes(flags: Flags, gap: int = 0, steps: Indices | None = None) -> list[tuple[int, int]]:
    """(first, last) index of each run of True; runs with at most `gap` steps between them count as one.

    Args:
        flags: [n].
        gap: Steps.
        steps: [n] their step numbers, where they are not consecutive.
    """
    found: list[tuple[int, int]] = []
    for i in np.flatnonzero(flags).tolist():
        before = found[-1][1] if found else i
        between = i - before - 1 if steps is None else int(steps[i] - steps[before]) - 1
        if found and (i == before + 1 or between <= gap):
            found[-1] = (found[-1][0], i)
        else:
            found.append((i, i))
    return found


def previous(steps: Indices, row: int) -> int:
    """The step recorded before a row: logs may have one in ten, or in 500. One less than the first for that."""
    return int(steps[row - 1]) if row else int(steps[0]) - 1


def spacing(steps: Indices) -> int:
    """How many steps lie between two records, usually; 1 where there are fewer than two."""
    return max(1, int(np.median(np.diff(steps)))) if len(steps) > 1 else 1


def mostly(flags: Flags, window: int) -> Flags:
    """Of each `window` rows of [n, series] that follow each other, whether more than half are True [n - window + 1, series].

    What a median below a limit means, at a fraction of its time; False stands for what is not known.
    """
    counts = np.zeros((len(flags) + 1, flags.shape[1]), dtype=np.int64)
    np.cumsum(flags, axis=0, out=counts[1:])
    most: Flags = 2 * (counts[window:] - counts[:-window]) > window
    return most


def moving_max(values: Array, window: int) -> Array:
    """The largest of each `window` rows of [n, series] that follow each other [n - window + 1, series]; no value may be NaN."""
    largest, span = values, 1
    while 2 * span <= window:
        largest, span = np.maximum(largest[:-span], largest[span:]), 2 * span
    return np.maximum(largest[: len(largest) - (window - span)], largest[window - span :]) if span < window else largest


def lasts(last: int, count: int, recent: int = 3) -> bool:
    """Whether an episode that ended at index `last` of `count` is still on: it reaches into the last few entries."""
    return last >= count - recent
