"""Whether two series differ by more than either moves by itself: pure functions on arrays.

Two healthy runs of different seeds are never alike: their losses jitter from batch to batch, and what one tensor began with
stays with it. A difference counts where three things hold together.

- It is large beside the noise. Records are put into blocks. A block's difference is the median of log a - log b in it. Its
  unit is the noise of one record in there: the robust scatter around the block's own trend, or what consecutive records differ
  by, whichever is larger, of both runs together; to which is added how much the blocks of each run wander by themselves, around
  their own course. A difference of less than `FLOOR` is never one.
- It is beyond doubt. The hypothesis held against it is not that the runs are equal, which no two seeds are, but that they
  differ by at most `LIMIT` units. The median of w records strays by 1.2533 / sqrt(w) units (fewer records count where
  they follow each other); that gives a probability for each block.
- It lasts. `LAST` blocks in a row must say so, with the same sign: the largest of their probabilities counts.

Of the many probabilities, one for each series and block, those are believed that Benjamini and Yekutieli (2001, Annals of
Statistics 29:1165) let pass at a false discovery rate of `RATE`: theirs holds whatever the series have to do with each other.
A tensor's difference is taken from what it was before: what a seed gave it at the beginning is no parting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from stabkit.metric import Array

__all__ = ["LAST", "LEAST", "Blocks", "block_width", "blocks_of", "discoveries", "known_median", "log_of"]

LIMIT = 1.0
"""Units of noise. 95 % of the blocks of losses and gradient norms of healthy twins of other seeds lie below 0.6 to 1.8 of them.
At 1.0 none of the 15 pairs of seeds 0 to 2 of the corpus was told to part, at 0.75 one was; nor, at 1.0, any of the 18 pairs of
seeds 10 to 12, one family more, which were not looked at before."""
FLOOR = 0.05
"""Of a natural logarithm: 5 %."""
LAST = 3
RATE = 0.01
LEAST = 24
"""Records below which nothing is said."""
_SHARE = 16
_NARROWEST, _WIDEST = 6, 32
_PAST = 3
"""Blocks that make a tensor's past."""
_MAD_TO_SIGMA = 1.4826
_MEDIAN = math.sqrt(math.pi / 2)

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Blocks:
    """What is known of the differences of several series, block by block.

    Attributes:
        width: Records in a block.
        difference: [blocks, series] median of log a - log b, less what it was before where that was asked for; NaN unknown.
        unit: [blocks, series] the noise it is held against.
        p: [blocks, series] the probability that this and the blocks after it differ by so much, if the truth were at most
            `LIMIT` units; NaN where it cannot be told.
    """

    width: int
    difference: Array
    unit: Array
    p: Array


def log_of(values: Array) -> Array:
    """Natural logarithm; NaN where a value is not positive or not finite."""
    with np.errstate(all="ignore"):
        return np.asarray(np.log(np.where((values > 0) & np.isfinite(values), values, np.nan)))


def block_width(records: int) -> int:
    """Records in a block: a sixteenth of them, within bounds."""
    return int(np.clip(records // _SHARE, _NARROWEST, _WIDEST))


def blocks_of(a: Array, b: Array, from_before: bool = False) -> Blocks:
    """The blocks of two logs of the same steps.

    Args:
        a: [n, series] natural logarithms of the first run's values, NaN where there are none.
        b: The same of the second.
        from_before: Whether a difference is taken from the median of the blocks before it.
    """
    width = block_width(len(a))
    difference, known = _medians(_cut(a - b, width))
    difference[known < width / 2] = np.nan
    noise, follows = zip(*(_noise(_cut(values, width)) for values in (a, b)), strict=True)
    wander = [_wander(_medians(_cut(values, width))[0]) for values in (a, b)]
    unit = np.sqrt(noise[0] ** 2 + noise[1] ** 2 + wander[0] ** 2 + wander[1] ** 2)
    if from_before:
        level, scatter = _before(difference)
        difference, unit = difference - level, np.sqrt(unit**2 + scatter**2)
    unit = np.maximum(unit, FLOOR)
    counted = np.maximum(known * np.minimum(*follows), 1)
    p = ndtr(-(np.abs(difference) / unit - LIMIT) * np.sqrt(counted) / _MEDIAN)
    return Blocks(width, difference, unit, _lasting(p, np.sign(difference)))


def discoveries(p: Array, rate: float = RATE) -> Flags:
    """Which of many probabilities are believed, by Benjamini and Yekutieli's procedure.

    Args:
        p: Probabilities of any shape; NaN is no test.
        rate: The share of false ones among those believed, at most, on average.
    """
    tested = np.sort(p[~np.isnan(p)])
    count = len(tested)
    if not count:
        return np.zeros(p.shape, np.bool_)
    harmonic = float(np.sum(1 / np.arange(1, count + 1)))
    passing = np.flatnonzero(tested <= rate * np.arange(1, count + 1) / (count * harmonic))
    limit = tested[passing[-1]] if len(passing) else -1.0
    return np.asarray(np.nan_to_num(p, nan=2.0) <= limit)


def _cut(values: Array, width: int) -> Array:
    """[blocks, width, series]; the records that fill no block are left out at the end."""
    whole = len(values) // width
    return values[: whole * width].reshape(whole, width, values.shape[1])


def _medians(blocks: Array) -> tuple[Array, Array]:
    """The median of each block [blocks, series], NaN left out, and how many values it rests on."""
    ordered = np.sort(blocks, axis=1)  # NaN last
    known = np.sum(~np.isnan(blocks), axis=1)
    low, high = np.maximum(known - 1, 0) // 2, np.minimum(known // 2, blocks.shape[1] - 1)
    pair = (np.take_along_axis(ordered, place[:, None], axis=1)[:, 0] for place in (low, high))
    return np.asarray(sum(pair) / 2), known.astype(np.float64)


def _noise(blocks: Array) -> tuple[Array, Array]:
    """The noise of one record of each block, and which share of the records counts as independent, both [blocks, series]."""
    width = blocks.shape[1]
    third = max(width // 3, 1)
    left, right = _medians(blocks[:, :third])[0], _medians(blocks[:, -third:])[0]
    run = (np.arange(width) - (width - 1) / 2) / (width - third)
    scatter = _spread(blocks - (right - left)[:, None] * run[:, None])
    jumps = _spread(np.diff(blocks, axis=1)) / math.sqrt(2)
    noise = np.fmax(scatter, jumps)
    # A block of few records tells its own noise badly, so that a lucky quiet one is held to what is usual.
    noise = np.fmax(noise, known_median(noise))
    with np.errstate(all="ignore"):
        free = np.clip(known_median(jumps) / known_median(scatter), 0.05, 1) ** 2  # 1 - correlation of neighbours
    return noise, np.broadcast_to(np.nan_to_num(free / (2 - free), nan=1.0), noise.shape)


def _spread(blocks: Array) -> Array:
    """Robust standard deviation of each block [blocks, series]."""
    return _MAD_TO_SIGMA * _medians(np.abs(blocks - _medians(blocks)[0][:, None]))[0]


def _wander(medians: Array) -> Array:
    """[series] how far a block's median strays from the line between its neighbours'."""
    bends = medians[1:-1] - (medians[:-2] + medians[2:]) / 2
    if len(bends) < 2:
        return np.zeros(medians.shape[1])
    return np.nan_to_num(_MAD_TO_SIGMA * known_median(np.abs(bends)) / math.sqrt(1.5))


def known_median(values: Array) -> Array:
    """The median of each column [series], NaN left out; NaN where there is nothing else."""
    return _medians(values[None])[0][0] if len(values) else np.full(values.shape[1], np.nan)


def _before(difference: Array) -> tuple[Array, Array]:
    """Median and spread of the blocks before each one; NaN before there are `_PAST` of them."""
    level, scatter = np.full(difference.shape, np.nan), np.full(difference.shape, np.nan)
    for block in range(_PAST, len(difference)):
        past = difference[:block][None]
        level[block], scatter[block] = _medians(past)[0][0], _spread(past)[0]
    return level, scatter


def _lasting(p: Array, sign: Array) -> Array:
    """The largest of the probabilities of `LAST` blocks in a row of one sign; 1 where the sign turns."""
    lasting = np.full(p.shape, np.nan)
    for block in range(len(p) - LAST + 1):
        rows = slice(block, block + LAST)
        alike = np.all(sign[rows] == sign[block], axis=0)
        lasting[block] = np.where(alike, np.max(p[rows], axis=0), np.where(np.isnan(p[rows]).any(axis=0), np.nan, 1.0))
    return lasting
