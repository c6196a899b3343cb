"""Which weights grow too fast for too long to be learning: the slopes of their logarithms, block by block.

Slopes over 50 steps of every tensor at every step would take longer than all else. A slope is bounded by how far the largest
norm of its window stands above the smallest, so of most steps it is known without working it out that nothing grows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stabkit.analyzers.rates import beta2_of_groups, groups_of, highest_rates, rows_of
from stabkit.analyzers.series import Flags, Indices, known_median, log_of, trailing_slopes
from stabkit.analyzers.sweep import Carry
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows, columns_for

__all__ = ["LEAST_RECORDS", "Clock", "Growing", "may_rise", "rise_needed"]

LEAST_RECORDS = 10
FARTHEST = 6.6
"""The most that a few steps of Adam can take per step, in rates: the largest (1 - 0.9^t) / sqrt(1 - 0.999^t), once gradients
have jumped from nothing to something."""
_TILE = 16
"""Rows whose extremes are looked at together."""


@dataclass(frozen=True)
class Clock:
    """How long growth is looked at: `window`, `early`, `growth`, `steady` and `lasting` of the thresholds."""

    window: int
    early: int
    growth: float
    steady: float
    lasting: int


@dataclass
class _Seen:
    """What one clock shows.

    Attributes:
        begins: int64 [n], the first row of the window that ends at each row.
        full: [n], whether that window holds enough.
        needed: [n], the least rise of a norm's logarithm within it with which a slope can be told.
        known: Whether any slope could be worked out.
        blocks: (first row, growing, certain) of the blocks in which anything grows.
    """

    begins: Indices
    full: Flags
    needed: Array
    known: bool = False
    blocks: list[tuple[int, Flags, Flags]] = field(default_factory=list)


class Growing:
    """Where the weights of matrices and embeddings grow, by each of several clocks.

    Args:
        run: The run.
        clocks: How long growth is looked at.
        over_peers: Slope over the median slope of all matrices.
        even: Slope of the later half of a window over that of the earlier, at most, where growth need not last.

    Attributes:
        steps: int64 [n], the measured steps from 1 on.
        columns: int64 [matrices], their columns in the log.
        names: Theirs.
    """

    metrics = ("weight_norm", "weight_absmax")

    def __init__(self, run: RunLog, clocks: tuple[Clock, ...], over_peers: float, even: float) -> None:
        self._run, self._over_peers, self._even = run, over_peers, even
        self._step0 = int(np.searchsorted(run.stream.tensor_steps, 1))
        self.steps: Indices = run.stream.tensor_steps[self._step0 :]
        self.columns: Indices = np.array(
            [i for i, t in enumerate(run.tensors) if t.role in ("matrix", "embedding")], dtype=np.int64
        )
        self.names = tuple(run.tensors[i].name for i in self.columns)
        self._x, self._spent = self.steps.astype(np.float64), _spent(run, self.steps)
        self._reach = _Reach(run, self.steps, self.columns)
        self._carry = Carry(max(clock.window for clock in clocks))
        self._clocks = {clock: self._seen(clock) for clock in clocks}
        self._rose = {clock: _rate_rose(run, self.steps, clock.window) for clock in clocks}

    def _seen(self, clock: Clock) -> _Seen:
        steps, ends = self.steps, np.arange(len(self.steps))
        begins = np.searchsorted(steps, steps - clock.window + 1)
        full = (ends - begins + 1 >= LEAST_RECORDS) & (steps - steps[begins] + 1 >= 0.8 * clock.window)
        full &= steps >= clock.early + clock.window
        return _Seen(begins, full, rise_needed(self._x, begins, np.log(clock.growth) / clock.window))

    def known(self, clock: Clock) -> bool:
        """Whether any slope could be worked out."""
        return self._clocks[clock].known

    def flags(self, clock: Clock) -> dict[int, tuple[Flags, Flags]]:
        """By matrix that grows at some row: where it does [n], and where that need not last [n]."""
        found: dict[int, tuple[Flags, Flags]] = {}
        for begin, growing, certain in self._clocks[clock].blocks:
            for i in np.flatnonzero(growing.any(axis=0)).tolist():
                whole = found.setdefault(i, (np.zeros(len(self.steps), dtype=bool), np.zeros(len(self.steps), dtype=bool)))
                for flags, block in zip(whole, (growing, certain), strict=True):
                    flags[begin : begin + len(block)] = block[:, i]
        return found

    def slopes(self, clock: Clock, row: int) -> Array:
        """The slope of each matrix [matrices] over the window that ends at a row."""
        begin = int(self._clocks[clock].begins[row])
        held = Rows(self._run, self._step0 + begin, self._step0 + row + 1, columns_for(("weight_norm",)))
        logs = log_of(np.take(held.table("weight_norm"), self.columns, axis=1))
        return np.asarray(trailing_slopes(logs, self._x[begin : row + 1], np.array([0]), np.array([row - begin]))[0])

    def knows(self, clock: Clock, logs: Array, after: int) -> bool:
        """Whether a slope of a series [n] of logarithms can be told at any row from `after` on."""
        seen = self._clocks[clock]
        return bool((seen.full & _whole(logs[:, None], seen.begins)[:, 0])[after:].any())

    def read(self, rows: Rows) -> None:
        """Take in the next block."""
        skipped = max(self._step0 - rows.begin, 0)
        norms = np.take(rows.table("weight_norm")[skipped:], self.columns, axis=1)
        norms = np.where((norms > 0) & np.isfinite(norms), norms, np.nan)
        first = rows.begin + skipped - self._step0
        if not norms.size:
            return
        joined = self._carry(norms)
        offset = first - (len(joined) - len(norms))
        for clock, seen in self._clocks.items():
            here = slice(first, first + len(norms))
            if not seen.known:
                whole = _whole(joined, seen.begins[offset : offset + len(joined)] - offset)[first - offset :]
                seen.known = bool((whole & seen.full[here, None]).any())
            may = may_rise(joined, seen.needed[offset : offset + len(joined)], clock.window)[first - offset :]
            ends = first + np.flatnonzero(may & seen.full[here])
            if len(ends):
                self._judge(clock, ends, joined, offset, rows, here)

    def _judge(self, clock: Clock, ends: Indices, norms: Array, offset: int, rows: Rows, here: slice) -> None:
        """Work out the slopes at some rows, and keep where something grows. `norms` begins at row `offset`."""
        seen, logs = self._clocks[clock], log_of(norms)
        x, spent = (each[offset : offset + len(logs)] for each in (self._x, self._spent))
        slopes = trailing_slopes(logs, x, seen.begins[ends] - offset, ends - offset)
        some = (slopes * clock.window > np.log(clock.growth)).any(axis=1)
        ends, slopes = ends[some], slopes[some]
        begins = seen.begins[ends]
        middles, rose = (begins + ends) // 2, self._rose[clock][ends]
        halves = ((begins - offset, middles - offset), (middles - offset, ends - offset))
        earlier, later = (trailing_slopes(logs, x, *half) for half in halves)
        if rose.any():
            earlier[rose], later[rose] = (trailing_slopes(logs, spent, a[rose], b[rose]) for a, b in halves)
        reach = self._reach.over(begins, ends)
        pace = slopes * np.exp(logs[middles - offset])
        peers = known_median(slopes.T)[:, None] if len(self.columns) >= 3 else -np.inf
        beyond = np.isfinite(reach) & (pace > FARTHEST * reach)
        growing = (
            (slopes * clock.window > np.log(clock.growth))
            & (later > clock.steady * earlier)
            & (earlier > 0)
            & (pace > reach)
            & ((slopes > self._over_peers * peers) | beyond)
        )
        certain = growing & beyond & (later < self._even * earlier)  # a matrix that is replaced jumps once
        sizes = np.take(rows.table("weight_absmax")[-(here.stop - here.start) :], self.columns, axis=1)
        growing &= np.isfinite(sizes[ends - here.start])
        if growing.any():
            blocks = np.zeros((2, here.stop - here.start, len(self.columns)), dtype=bool)
            blocks[:, ends - here.start] = growing, certain
            seen.blocks.append((here.start, blocks[0], blocks[1]))


def rise_needed(x: Array, begins: Indices, slope: float) -> Array:
    """How far the values of a window must lie apart, at least, for a least-squares line through them to be as steep [n].

    Of values that lie within r the steepest line is that of a step from the lowest to the highest in the middle: its slope is
    r times sum |x - mean| / 2 over sum (x - mean)^2. For the rounding of both a millionth is taken off.
    """
    ends = np.arange(len(x))
    longest = int((ends - begins).max(initial=-1)) + 1
    rows = [(np.maximum(ends - back, begins), ends - back >= begins) for back in range(longest)]
    total, count = np.zeros(len(x)), (ends - begins + 1).astype(np.float64)
    for row, inside in rows:
        total += np.where(inside, x[row] - x, 0.0)
    mean, absolute, squares = total / count, np.zeros(len(x)), np.zeros(len(x))
    for row, inside in rows:
        off = np.where(inside, x[row] - x - mean, 0.0)
        absolute, squares = absolute + np.abs(off), squares + off * off
    with np.errstate(divide="ignore", invalid="ignore"):
        needed: Array = slope * (1 - 1e-6) * squares / (absolute / 2)
    return np.where(absolute > 0, needed, 0.0)


def may_rise(norms: Array, needed: Array, window: int) -> Flags:
    """Of each row, whether some tensor's largest norm of the `window` rows up to it may be far above the smallest.

    Args:
        norms: [n, tensors], above 0, NaN where they are not known.
        needed: [n], how far: the difference of the logarithms.
        window: Rows.

    Returns:
        [n]; True may be said too often, but never too seldom.
    """
    n, tensors = norms.shape
    tiles = -(-n // _TILE)
    padded = np.full((tiles * _TILE, tensors), np.nan)
    padded[len(padded) - n :] = norms
    by_tile = padded.reshape(tiles, _TILE, tensors)
    low, high = np.fmin.reduce(by_tile, axis=1), np.fmax.reduce(by_tile, axis=1)
    lowest, highest = low.copy(), high.copy()
    for back in range(1, min(-(-(window - 1) // _TILE) + 1, tiles)):
        lowest[back:], highest[back:] = np.fmin(lowest[back:], low[:-back]), np.fmax(highest[back:], high[:-back])
    least = np.full(len(padded), np.inf)
    least[len(padded) - n :] = needed
    factor = np.exp(least.reshape(tiles, _TILE).min(axis=1))[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        wide = (highest >= lowest * factor).any(axis=1)
    return np.repeat(wide, _TILE)[len(padded) - n :]


def _whole(values: Array, begins: Indices) -> Flags:
    """[n, series]: whether the window from `begins` [n] to each row holds no NaN."""
    bad = np.isnan(values)
    last_bad = np.maximum.accumulate(np.where(bad, np.arange(len(values))[:, None], -1), axis=0)
    whole: Flags = last_bad < begins[:, None]
    return whole


def _rate_rose(run: RunLog, steps: Indices, window: int) -> Flags:
    """Of each measured step, whether the rate is above what it was a window before."""
    if not run.has("lr", "group"):
        return np.zeros(len(steps), dtype=bool)
    lr = highest_rates(run)
    rose: Flags = lr[rows_of(run, steps)] > 1.05 * lr[rows_of(run, np.maximum(steps - window, run.steps[0]))]
    return rose


def _spent(run: RunLog, steps: Indices) -> Array:
    """The sum of the rates up to each measured step [n]; of steps without a record it takes the rate of the next."""
    if not run.has("lr", "group"):
        return np.zeros(len(steps))
    lr = np.nan_to_num(highest_rates(run)[rows_of(run, steps)])
    with np.errstate(over="ignore"):
        return np.asarray(np.cumsum(lr * np.diff(steps, prepend=steps[:1] - 1)))


class _Reach:
    """How far Adam can move each matrix in a step: rate x sqrt(elements).

    -inf where the optimizer is no Adam or the rate is not known: there any growth may be due to gradients that grow.
    """

    def __init__(self, run: RunLog, steps: Indices, columns: Indices) -> None:
        self._total: Array | None = None
        self._root = np.sqrt(np.array([run.tensors[i].numel for i in columns], dtype=np.float64))
        if run.has("lr", "group") and run.has("beta2", "group"):
            rows, groups = rows_of(run, steps), np.stack([groups_of(run, name)[columns] for name in ("lr", "beta2")])
            pairs, self._pair = np.unique(groups, axis=1, return_inverse=True)
            lr, beta2 = run.table("lr").values[rows][:, pairs[0]], beta2_of_groups(run, rows)[:, pairs[1]]
            with np.errstate(over="ignore", invalid="ignore"):
                spent = np.cumsum(np.where(np.isfinite(beta2), lr, np.nan), axis=0)
            self._total = np.concatenate([np.zeros((1, lr.shape[1])), spent])

    def over(self, begins: Indices, ends: Indices) -> Array:
        """As a mean over each window [windows, matrices]."""
        reach = np.full((len(ends), len(self._root)), -np.inf)
        if self._total is None:
            return reach
        mean = ((self._total[ends + 1] - self._total[begins]) / (ends - begins + 1)[:, None])[:, self._pair.ravel()]
        return np.where(np.isfinite(mean), mean * self._root, reach)
