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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.growing import LEAST_RECORDS, Clock, Growing
from stabkit.analyzers.rates import highest_rates, rows_of
from stabkit.analyzers.series import Flags, Indices, episodes, log_of, trailing_slopes
from stabkit.analyzers.sweep import swept
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import rows_of_steps

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
ONSET_SPAN = 25


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


class GrowthTowardsOverflow:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: GrowthTowardsOverflowThresholds | None = None) -> None:
        self.thresholds = thresholds or GrowthTowardsOverflowThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding for the tensor that began first; others that grow likewise are named behind it."""
        seen, clocks = swept(run, self._begin), self._clocks()
        if not any(seen.known(clock) for clock in clocks):
            raise NotApplicable(f"no {self.thresholds.fast_window} steps hold {LEAST_RECORDS} finite records of a matrix")
        told = []
        for clock in clocks:
            flags = seen.flags(clock)
            firsts = {i: row for i, each in flags.items() if (row := _fires(run, seen.steps, *each, clock)) is not None}
            if firsts:
                row = min(firsts.values())
                slopes = seen.slopes(clock, row)
                together = sorted((i for i, at in sorted(firsts.items()) if at == row), key=lambda i: -slopes[i])
                told.append((row, clock, slopes, together, flags[together[0]][0]))
        if told:
            row, clock, slopes, together, growing = min(told, key=lambda first: first[0])
            yield self._finding(run, seen, clock, row, slopes, together, growing)

    def sweeps(self) -> tuple[Callable[[RunLog], Growing]]:
        """What it reads of the tensors."""
        return (self._begin,)

    def _begin(self, run: RunLog) -> Growing:
        return Growing(run, self._clocks(), self.thresholds.over_peers, self.thresholds.even)

    def _clocks(self) -> tuple[Clock, ...]:
        limits = self.thresholds
        return (Clock(limits.fast_window, 0, limits.fast_growth, limits.fast_steady, limits.fast_lasting),
                Clock(limits.window, limits.early, limits.growth, limits.steady, limits.lasting))  # fmt: skip

    def _finding(
        self, run: RunLog, seen: Growing, clock: Clock, row: int, slopes: Array, together: list[int], growing: Flags
    ) -> Finding:
        i, steps = together[0], seen.steps
        name, slope, step = seen.names[i], float(slopes[i]), int(steps[row])
        logs = _logs(run, int(seen.columns[i]))
        size, limit, onset = _size(run, name, step), _largest(run), _onset(steps, logs, row, slope)
        left = max(0, int(math.log(limit / size) / slope)) if 0 < size < limit else 0
        last = row + int(np.argmin(np.append(growing[row:], False))) - 1
        slowed = seen.knows(clock, logs, last + 1)
        now, rate = _decay(run, name, step), _mean_rate(run, steps, row, clock.window)
        holds = float(f"{now + slope / rate:.2g}") if rate > 0 and now >= 0 else 0.0 if now < 0 else math.nan
        decay = f": {holds:.2g} at this rate would hold it, where it is {now:.2g}" if holds >= 0 else ""
        return found(
            RULE,
            message=f"{name} has grown by {100 * np.expm1(slope):.2g} % a step since about step {onset}: at step {step} "
            f"at most {left} steps from overflow",
            first_step=step,
            last_step=int(steps[last]),
            event_step=onset,
            last_good_step=onset,
            state=State.RECOVERED if slowed else State.ONGOING,
            tensors=tuple(seen.names[j] for j in together[:5]),
            evidence=(
                Evidence(metric="slope of log(weight_norm)", observed=slope, expected=float(np.nanmedian(slopes)),
                         step=step, tensor=name, note="against the median matrix"),
                Evidence(metric="weight_absmax", observed=size, expected=limit, step=step, tensor=name,
                         note="largest finite number of the format"),
                Evidence(metric="steps left", observed=float(left), step=step, tensor=name, note="at most, at this pace"),
            ),
            advice=f"Stop the growth of {name}: set its weight decay right{decay}. Restart from about step {onset}.",
            remedy={"weight_decay": holds} if holds >= 0 else {},
        )  # fmt: skip


def _fires(run: RunLog, steps: Indices, growing: Flags, certain: Flags, clock: Clock) -> int | None:
    """The first row at which a tensor has grown for long enough."""
    may = rows_of(run, steps) >= RULE.min_steps - 1
    for first, last in episodes(growing):
        lasted = steps[first : last + 1] - steps[first] + 1
        rows = np.flatnonzero(((lasted >= clock.lasting) | certain[first : last + 1]) & may[first : last + 1])
        if len(rows):
            return first + int(rows[0])
    return None


def _logs(run: RunLog, column: int) -> Array:
    """log(weight norm) of one tensor over the measured steps from 1 on [n]."""
    norms = replace(run, streams=(run.stream.only(column),), index=0).table("weight_norm")
    return log_of(norms.values[norms.steps >= 1, 0])


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


def _mean_rate(run: RunLog, steps: Indices, row: int, window: int) -> float:
    """The rate over the window whose slope is reported, as a mean; NaN where it is not known."""
    if not run.has("lr", "group"):
        return math.nan
    begin = int(np.searchsorted(steps, steps[row] - window + 1))
    return float(np.mean(highest_rates(run)[rows_of(run, steps[begin : row + 1])]))


def _size(run: RunLog, name: str, step: int) -> float:
    """The largest weight of a tensor after a step."""
    place = next(i for i, tensor in enumerate(run.tensors) if tensor.name == name)
    return float(rows_of_steps(run, step, step).table("weight_absmax")[0, place])


def _onset(steps: Indices, logs: Array, row: int, slope: float) -> int:
    """The first step from which the slope over `ONSET_SPAN` steps stayed above half of `slope`, up to `row`."""
    steps = steps[: row + 1]
    begins, ends = np.searchsorted(steps, steps - ONSET_SPAN + 1), np.arange(row + 1)
    slopes = trailing_slopes(logs[:, None], steps.astype(np.float64), begins, ends)[:, 0]
    steep = (slopes > slope / 2) & (ends - begins >= 3)
    slow = np.flatnonzero(~steep)
    first = int(slow[-1]) + 1 if len(slow) else 0
    return int(steps[begins[first]]) if first <= row else int(steps[row])
