"""SK302 growth-towards-overflow.

What it reports:    A tensor whose weights grow by a steady factor every step, unlike its past and unlike its peers.
Why it matters:     Growth by a factor is patient and then sudden: the loss shows nothing until products of such weights leave the range
                    of the number format, and then everything is NaN at once. By then the checkpoints hold it too.
How it decides:     Slope of log(weight norm) over the last 50 steps, none of them among the first 50, where every matrix grows, nor in a
                    rise of the rate. Growth by at least a factor 2 over them; not slowing (the
                    later half at least 0.8 times as steep as the earlier, where ordinary early growth slows as 1/t); at least 5
                    times the median slope of all matrices; and that for 10 steps in a row. The onset is the first step from which the slope over 25
                    steps stayed above half of the one reported. Steps left: log(largest finite number / largest weight) / slope,
                    65504 for float16, 3.4e38 for bfloat16 and float32. Activations are products of weights and get there earlier.
Known false alarms: A scale-free matrix (before a normalisation) may grow without harm for a long time.
What to try:        Weight decay on that tensor; check the sign of the decay and what pushes it; QK-norm for attention projections.
References:         Opposite-sign pushes and doubling times: Zhang et al. 2022 (OPT, arXiv 2205.01068) saw norms drift before
                    divergence; Wortsman et al. 2023, arXiv 2309.14322 on logit growth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabkit.analyzers.base import Rule, found
from stabkit.analyzers.series import episodes, slope_of_log
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog, Table

__all__ = ["RULE", "GrowthTowardsOverflow", "GrowthTowardsOverflowThresholds"]

RULE = Rule(
    code="SK302",
    name="growth-towards-overflow",
    severity=Severity.WARNING,
    requires=(("weight_norm", "tensor"), ("weight_absmax", "tensor")),
    min_steps=110,
)

LARGEST = {"float16": 65504.0}
LARGEST_ELSE = 3.4e38


@dataclass(frozen=True, kw_only=True)
class GrowthTowardsOverflowThresholds:
    """When growth is not learning any more."""

    window: int = 50
    """Steps over which the slope is taken."""
    early: int = 50
    """Steps at the start that no window may hold."""
    growth: float = 2.0
    """Least growth over the window."""
    steady: float = 0.8
    """Slope of the later half over that of the earlier."""
    over_peers: float = 5.0
    """Slope over the median slope of all matrices."""
    lasting: int = 10
    """Steps in a row for which all that holds."""


class GrowthTowardsOverflow:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: GrowthTowardsOverflowThresholds | None = None) -> None:
        self.thresholds = thresholds or GrowthTowardsOverflowThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding for the tensor that began first; others that grow likewise are named behind it."""
        limits = self.thresholds
        table = run.table("weight_norm")
        table = Table(table.metric, "", table.steps[table.steps >= 1], table.tensors, table.values[table.steps >= 1])
        judged = np.array([t.role in ("matrix", "embedding") for t in run.tensors])
        slopes, growing = self._growing(table, judged)
        growing &= ~_rate_rose(run, table.steps, limits.window)[:, None]
        firsts = {}
        for i in np.flatnonzero(growing.any(axis=0)).tolist():
            long_enough = [(a, b) for a, b in episodes(growing[:, i]) if b - a + 1 >= limits.lasting]
            if long_enough:
                firsts[i] = long_enough[0][0] + limits.lasting - 1
        if not firsts:
            return
        row = min(firsts.values())
        together = sorted((i for i, at in firsts.items() if at <= row), key=lambda i: -slopes[row, i])
        yield self._finding(run, table, slopes, growing, row, together)

    def _growing(self, table: Table, judged: NDArray[np.bool_]) -> tuple[Array, NDArray[np.bool_]]:
        """(slopes, flags), both [steps, tensors], over the window that ends at each step."""
        limits = self.thresholds
        steps, values = table.steps.astype(np.float64), table.values
        slopes, flags = np.full(values.shape, np.nan), np.zeros(values.shape, dtype=bool)
        for i in range(len(steps)):
            begin = int(np.searchsorted(steps, steps[i] - limits.window + 1))
            if i - begin < 9 or steps[i] < limits.early + limits.window:
                continue
            middle = (begin + i) // 2
            slopes[i] = slope_of_log(values[begin : i + 1], steps[begin : i + 1])
            earlier = slope_of_log(values[begin : middle + 1], steps[begin : middle + 1])
            later = slope_of_log(values[middle : i + 1], steps[middle : i + 1])
            peers = np.nanmedian(np.where(judged, slopes[i], np.nan)) if np.isfinite(slopes[i][judged]).any() else 0.0
            with np.errstate(invalid="ignore"):
                flags[i] = (
                    judged
                    & (slopes[i] * limits.window > np.log(limits.growth))
                    & (later > limits.steady * earlier)
                    & (earlier > 0)
                    & ((slopes[i] > limits.over_peers * peers) | (judged.sum() < 3))
                )
        return slopes, flags

    def _finding(
        self, run: RunLog, table: Table, slopes: Array, growing: NDArray[np.bool_], row: int, together: list[int]
    ) -> Finding:
        i = together[0]
        name, step, slope = table.tensors[i], int(table.steps[row]), float(slopes[row, i])
        sizes = run.table("weight_absmax")
        size = float(sizes.values[np.searchsorted(sizes.steps, step), i])
        limit = _largest(run)
        left = int(np.log(limit / size) / slope) if size < limit else 0
        onset = _onset(table, i, row, slope)
        last = row + int(np.argmin(np.append(growing[row:, i], False))) - 1
        peers = np.nanmedian(slopes[row])
        return found(
            RULE,
            message=f"{name} has grown {np.expm1(slope):.2g} of its size a step since about step {onset}: "
            f"{left} steps from overflow at this pace",
            first_step=step,
            last_step=int(table.steps[last]),
            event_step=onset,
            last_good_step=onset,
            state=State.ONGOING if last == len(table.steps) - 1 else State.RECOVERED,
            tensors=tuple(table.tensors[j] for j in together[:5]),
            evidence=(
                Evidence(metric="slope of log(weight_norm)", observed=slope, expected=float(peers), step=step, tensor=name,
                         note="against the median tensor"),
                Evidence(metric="weight_absmax", observed=size, expected=limit, step=step, tensor=name,
                         note="largest finite number of the format"),
                Evidence(metric="steps left", observed=float(left), step=step, tensor=name),
            ),
            advice=f"Stop the growth of {name}: check the sign and size of its weight decay (a decay of "
            f"{_needed_decay(run, step, slope)} at this rate would hold it) and restart from about step {onset}.",
        )  # fmt: skip


def _rate_rose(run: RunLog, steps: NDArray[np.int64], window: int) -> NDArray[np.bool_]:
    """Of each measured step, whether the rate is above what it was a window before."""
    if not run.has("lr", "group"):
        return np.zeros(len(steps), dtype=bool)
    lr = np.nanmax(run.table("lr").values, axis=1)
    now = np.searchsorted(run.steps, steps).clip(0, len(lr) - 1)
    before = np.searchsorted(run.steps, np.maximum(steps - window, run.steps[0])).clip(0, len(lr) - 1)
    rose: NDArray[np.bool_] = lr[now] > 1.05 * lr[before]
    return rose


def _largest(run: RunLog) -> float:
    dtypes = {str(e.get("dtype")) for e in run.events if e.get("event") == "autocast"}
    dtypes |= {t.dtype for t in run.tensors}
    return min(LARGEST.get(dtype, LARGEST_ELSE) for dtype in dtypes) if dtypes else LARGEST_ELSE


def _onset(table: Table, i: int, row: int, slope: float, span: int = 25) -> int:
    """The first step from which the slope over `span` steps stayed above half of `slope`, up to `row`."""
    steps = table.steps.astype(np.float64)
    onset = row
    for end in range(row, 0, -1):
        begin = int(np.searchsorted(steps, steps[end] - span + 1))
        if end - begin < 3:
            break
        if not slope_of_log(table.values[begin : end + 1, i : i + 1], steps[begin : end + 1])[0] > slope / 2:
            break
        onset = begin
    return int(table.steps[onset])


def _needed_decay(run: RunLog, step: int, slope: float) -> str:
    if not run.has("lr", "group"):
        return "slope over rate"
    rates = run.table("lr")
    lr = float(np.nanmax(rates.values[np.searchsorted(rates.steps, step)]))
    return f"{slope / lr:.2g}" if lr > 0 else "slope over rate"
