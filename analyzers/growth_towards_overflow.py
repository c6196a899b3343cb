"""SK302 growth-towards-overflow.

What it reports:    A tensor whose weights grow by a steady factor every step, unlike its past and unlike its peers.
Why it matters:     Growth by a factor is patient and then sudden: the loss shows nothing until products of such weights
                    leave the range of the number format, and then everything is NaN at once. By then the checkpoints hold
                    it too.
How it decides:     Slope of log(weight norm) over the last 50 steps: none of them among the first 50, where every matrix grows,
                    and at least 10 records over 40 steps. Growth by at least a factor 2 over them; not slowing (the later half
                    at least 0.8 times as steep as the earlier, where ordinary early growth slows as 1/t); at least 5 times the
                    median slope of all matrices (where there are 3); and that for 10 steps in a row. Fast growth is told
                    sooner: by a factor 1.6 over 15 steps (3.1 % a step) with halves as steep to 0.9, from the first step on,
                    for 10 steps in a row. While the rate rises the halves are compared against the sum of rates. Under Adam
                    growth must be faster than its steps can make it, the rate for every element: what is slower is learning,
                    however steady. At 6.6 times that, the most that gradients which jump can do, it need not last, nor do the
                    other matrices matter. The onset is the first step from which the slope over 25 steps stayed above half of
                    the one reported. Steps left: log(largest finite number / largest weight) / slope, 65504 for float16, 3.4e38
                    for bfloat16 and float32. That is the most there can be: squares and products of weights get there earlier.
Known false alarms: A scale-free matrix (before a normalisation) may grow without harm for a long time.
What to try:        Weight decay on that tensor, higher by slope / rate than it is; check the sign of the decay and
                    what pushes it; QK-norm for attention projections.
References:         Zhang et al. 2022 (OPT, arXiv 2205.01068) saw norms drift before divergence; Wortsman et al. 2023,
                    arXiv 2309.14322 on logit growth. The limits come from how slopes of norms behave: 1/t where updates
                    are of constant size, constant where growth feeds itself. Queries and keys of a healthy small vision
                    transformer doubled within 50 steps, at two thirds of what Adam can do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.rates import highest_rates, of_tensors, rows_of
from stabkit.analyzers.series import Flags, Indices, episodes, known_median, log_of, trailing_slopes
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["RULE", "GrowthTowardsOverflow", "GrowthTowardsOverflowThresholds"]

RULE = Rule(
    code="SK302",
    name="growth-towards-overflow",
    severity=Severity.WARNING,
    requires=(("weight_norm", "tensor"), ("weight_absmax", "tensor")),
    min_steps=16,
)

LARGEST = {"float16": 65504.0, "float64": 1.797e308}
LARGEST_ELSE = 3.4e38
LEAST_RECORDS = 10
ONSET_SPAN = 25
FARTHEST = 6.6
"""The most that a few steps of Adam can take per step, in rates: the largest (1 - 0.9^t) / sqrt(1 - 0.999^t), once gradients
have jumped from nothing to something."""


@dataclass(frozen=True, kw_only=True)
class GrowthTowardsOverflowThresholds(Thresholds):
    """When growth is not learning any more."""

    window: int = 50
    """Steps over which the slope is taken."""
    early: int = 50
    """Steps at the start that no window may hold."""
    growth: float = 2.0
    """Least growth over the window."""
    steady: float = 0.8
    """Slope of the later half over that of the earlier."""
    even: float = 2.0
    """Slope of the later half over that of the earlier, at most, where growth need not last."""
    over_peers: float = 5.0
    """Slope over the median slope of all matrices."""
    lasting: int = 10
    """Steps in a row for which all that holds."""
    fast_window: int = 15
    """Steps over which the slope of fast growth is taken, at any time of the run."""
    fast_growth: float = 1.6
    """Least growth over that window: 3.1 % a step. Keys of a healthy small transformer grew by 3.3 % for 5 steps."""
    fast_steady: float = 0.9
    """Slope of its later half over that of the earlier: linear growth of 3.1 % a step has 0.77 over so few steps."""
    fast_lasting: int = 10
    """Steps in a row for which that holds."""


@dataclass(frozen=True)
class _Clock:
    """How long growth is looked at: `window`, `early`, `growth`, `steady` and `lasting` of the thresholds."""

    window: int
    early: int
    growth: float
    steady: float
    lasting: int


@dataclass(frozen=True)
class _Growth:
    """What is known of the tensors that can be judged.

    Attributes:
        steps: [n].
        names: Of the tensors.
        logs: [n, tensors], of the weight norm.
        slopes: [n, tensors], over the window that ends at a row; NaN where it cannot be told.
        growing: [n, tensors].
        certain: [n, tensors], of these where it need not last.
        window: Steps of a slope.
    """

    steps: Indices
    names: tuple[str, ...]
    logs: Array
    slopes: Array
    growing: Flags
    certain: Flags
    window: int


class GrowthTowardsOverflow:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: GrowthTowardsOverflowThresholds | None = None) -> None:
        self.thresholds = thresholds or GrowthTowardsOverflowThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding for the tensor that began first; others that grow likewise are named behind it."""
        limits = self.thresholds
        clocks = (_Clock(limits.fast_window, 0, limits.fast_growth, limits.fast_steady, limits.fast_lasting),
                  _Clock(limits.window, limits.early, limits.growth, limits.steady, limits.lasting))  # fmt: skip
        seen = [(self._growth(run, clock), clock) for clock in clocks]
        if not any(np.isfinite(growth.slopes).any() for growth, _ in seen):
            raise NotApplicable(f"no {limits.fast_window} steps hold {LEAST_RECORDS} finite records of a matrix")
        told = []
        for growth, clock in seen:
            firsts = {i: row for i in range(len(growth.names)) if (row := self._fires(run, growth, i, clock)) is not None}
            if firsts:
                row = min(firsts.values())
                together = sorted((i for i, at in firsts.items() if at == row), key=lambda i: -growth.slopes[row, i])
                told.append((row, growth, together))
        if told:
            row, growth, together = min(told, key=lambda first: first[0])
            yield self._finding(run, growth, row, together)

    def _growth(self, run: RunLog, clock: _Clock) -> _Growth:
        limits, table = self.thresholds, run.table("weight_norm")
        columns = [i for i, t in enumerate(run.tensors) if t.role in ("matrix", "embedding")]
        rows = table.steps >= 1
        steps, logs = table.steps[rows], log_of(table.values[rows][:, columns])
        slopes, growing, certain = np.full(logs.shape, np.nan), *np.zeros((2, *logs.shape), dtype=bool)
        x, ends = steps.astype(np.float64), np.arange(len(steps))
        begins = np.searchsorted(steps, steps - clock.window + 1)
        full = (ends - begins + 1 >= LEAST_RECORDS) & (steps - steps[begins] + 1 >= 0.8 * clock.window)
        ends = ends[full & (steps >= clock.early + clock.window)]
        slopes[ends] = trailing_slopes(logs, x, begins[ends], ends)
        ends = ends[(slopes[ends] * clock.window > np.log(clock.growth)).any(axis=1)]  # of few rows the rest need be known
        middles = (begins[ends] + ends) // 2
        earlier, later = trailing_slopes(logs, x, begins[ends], middles), trailing_slopes(logs, x, middles, ends)
        rose = _rate_rose(run, steps, clock.window)[ends]
        if rose.any():
            spent, at = _spent(run, steps), ends[rose]
            earlier[rose] = trailing_slopes(logs, spent, begins[at], middles[rose])
            later[rose] = trailing_slopes(logs, spent, middles[rose], at)
        reach = _reach(run, steps, begins[ends], ends)[:, columns]
        pace = slopes[ends] * np.exp(logs[middles])
        peers = known_median(slopes[ends].T)[:, None] if len(columns) >= 3 else -np.inf
        beyond = np.isfinite(reach) & (pace > FARTHEST * reach)
        growing[ends] = (
            (slopes[ends] * clock.window > np.log(clock.growth))
            & (later > clock.steady * earlier)
            & (earlier > 0)
            & (pace > reach)
            & ((slopes[ends] > limits.over_peers * peers) | beyond)
        )
        certain[ends] = growing[ends] & beyond & (later < limits.even * earlier)  # a matrix that is replaced jumps once
        growing &= np.isfinite(run.table("weight_absmax").values[rows][:, columns])
        return _Growth(steps, tuple(table.tensors[i] for i in columns), logs, slopes, growing, certain, clock.window)

    def _fires(self, run: RunLog, growth: _Growth, i: int, clock: _Clock) -> int | None:
        """The first row at which a tensor has grown for long enough."""
        may = rows_of(run, growth.steps) >= RULE.min_steps - 1
        for first, last in episodes(growth.growing[:, i]):
            lasted = growth.steps[first : last + 1] - growth.steps[first] + 1
            long_enough = (lasted >= clock.lasting) | growth.certain[first : last + 1, i]
            rows = np.flatnonzero(long_enough & may[first : last + 1])
            if len(rows):
                return first + int(rows[0])
        return None

    def _finding(self, run: RunLog, growth: _Growth, row: int, together: list[int]) -> Finding:
        i, step = together[0], int(growth.steps[row])
        name, slope = growth.names[i], float(growth.slopes[row, i])
        size, limit, onset = _size(run, name, step), _largest(run), _onset(growth, i, row, slope)
        left = max(0, int(math.log(limit / size) / slope)) if 0 < size < limit else 0
        last = row + int(np.argmin(np.append(growth.growing[row:, i], False))) - 1
        slowed = np.isfinite(growth.slopes[last + 1 :, i]).any()
        now, rate = _decay(run, name, step), _mean_rate(run, growth, row)
        holds = float(f"{now + slope / rate:.2g}") if rate > 0 and now >= 0 else 0.0 if now < 0 else math.nan
        decay = f": {holds:.2g} at this rate would hold it, where it is {now:.2g}" if holds >= 0 else ""
        return found(
            RULE,
            message=f"{name} has grown by {100 * np.expm1(slope):.2g} % a step since about step {onset}: at step {step} "
            f"at most {left} steps from overflow",
            first_step=step,
            last_step=int(growth.steps[last]),
            event_step=onset,
            last_good_step=onset,
            state=State.RECOVERED if slowed else State.ONGOING,
            tensors=tuple(growth.names[j] for j in together[:5]),
            evidence=(
                Evidence(metric="slope of log(weight_norm)", observed=slope, expected=float(np.nanmedian(growth.slopes[row])),
                         step=step, tensor=name, note="against the median matrix"),
                Evidence(metric="weight_absmax", observed=size, expected=limit, step=step, tensor=name,
                         note="largest finite number of the format"),
                Evidence(metric="steps left", observed=float(left), step=step, tensor=name, note="at most, at this pace"),
            ),
            advice=f"Stop the growth of {name}: set its weight decay right{decay}. Restart from about step {onset}.",
            remedy={"weight_decay": holds} if holds >= 0 else {},
        )  # fmt: skip


def _rate_rose(run: RunLog, steps: Indices, window: int) -> Flags:
    """Of each measured step, whether the rate is above what it was a window before."""
    if not run.has("lr", "group"):
        return np.zeros(len(steps), dtype=bool)
    lr = highest_rates(run)
    rose: Flags = lr[rows_of(run, steps)] > 1.05 * lr[rows_of(run, np.maximum(steps - window, run.steps[0]))]
    return rose


def _spent(run: RunLog, steps: Indices) -> Array:
    """The sum of the rates up to each measured step [n]; of steps without a record it takes the rate of the next."""
    lr = np.nan_to_num(highest_rates(run)[rows_of(run, steps)])
    return np.asarray(np.cumsum(lr * np.diff(steps, prepend=steps[:1] - 1)))


def _reach(run: RunLog, steps: Indices, begins: Indices, ends: Indices) -> Array:
    """How far Adam can move each tensor in a step, as a mean over each window: rate x sqrt(elements) [windows, tensors].

    -inf where the optimizer is no Adam or the rate is not known: there any growth may be due to gradients that grow.
    """
    reach = np.full((len(ends), len(run.tensors)), -np.inf)
    if not (run.has("lr", "group") and run.has("beta2", "group")):
        return reach
    rows = rows_of(run, steps)
    lr, beta2 = of_tensors(run, "lr", rows), of_tensors(run, "beta2", rows)
    total = np.concatenate([np.zeros((1, lr.shape[1])), np.cumsum(np.where(np.isfinite(beta2), lr, np.nan), axis=0)])
    mean = (total[ends + 1] - total[begins]) / (ends - begins + 1)[:, None]
    numel = np.array([tensor.numel for tensor in run.tensors], dtype=np.float64)
    return np.where(np.isfinite(mean), mean * np.sqrt(numel), reach)


def _largest(run: RunLog) -> float:
    dtypes = {str(e.get("dtype")) for e in run.events if e.get("event") == "autocast"} | {t.dtype for t in run.tensors}
    return min((LARGEST.get(dtype, LARGEST_ELSE) for dtype in dtypes), default=LARGEST_ELSE)


def _decay(run: RunLog, name: str, step: int) -> float:
    """The weight decay of a tensor at a step; 0 where it is not known."""
    if not run.has("weight_decay", "group"):
        return 0.0
    group = next(tensor.group for tensor in run.tensors if tensor.name == name) or 0
    decay = run.table("weight_decay").values[int(rows_of(run, np.array([step]))[0]), group]
    return float(np.nan_to_num(decay))


def _mean_rate(run: RunLog, growth: _Growth, row: int) -> float:
    """The rate over the window whose slope is reported, as a mean; NaN where it is not known."""
    if not run.has("lr", "group"):
        return math.nan
    begin = int(np.searchsorted(growth.steps, growth.steps[row] - growth.window + 1))
    return float(np.mean(highest_rates(run)[rows_of(run, growth.steps[begin : row + 1])]))


def _size(run: RunLog, name: str, step: int) -> float:
    """The largest weight of a tensor after a step."""
    sizes = run.table("weight_absmax").series(name)
    return float(sizes.values[np.searchsorted(sizes.steps, step)])


def _onset(growth: _Growth, i: int, row: int, slope: float) -> int:
    """The first step from which the slope over `ONSET_SPAN` steps stayed above half of `slope`, up to `row`."""
    steps = growth.steps[: row + 1]
    begins, ends = np.searchsorted(steps, steps - ONSET_SPAN + 1), np.arange(row + 1)
    slopes = trailing_slopes(growth.logs[:, i : i + 1], steps.astype(np.float64), begins, ends)[:, 0]
    steep = (slopes > slope / 2) & (ends - begins >= 3)
    slow = np.flatnonzero(~steep)
    first = int(slow[-1]) + 1 if len(slow) else 0
    return int(steps[begins[first]]) if first <= row else int(steps[row])
