"""SK205 decoupled-second-moment.

What it reports:    A second moment that has decayed far above the gradients it should restrain, while the gradients begin to
                    swing to and fro and grow by a steady factor.
Why it matters:     Where g^2 is far below v, v shrinks by beta2 a step whatever the gradients do, and the effective rate grows
                    until it is too large for the curvature. Then the gradient swings about its valley, each swing larger than
                    the last, and the loss spikes before v has taken notice. It is the opposite of an outdated small second
                    moment: rms_ratio is far below 1 until the spike is there.
How it decides:     The swing of a tensor is the part of its gradient that is not along the momentum: |g| sqrt(1 - c^2), c the
                    cosine of gradient and momentum where it is positive, else 0. Of all tensors together the swing has grown
                    at each of 5 steps in a row, to at least 2.5 times its median of the 30 records before; it is at least 0.6
                    of the gradient; the gradient is still smaller than the root of the second moment, as its median of those
                    30 records is than half of it; and at this pace the swing reaches that root within 30 steps. Alarms up to
                    30 steps apart are one. Needs tensors measured at every step; the first 50 steps are not judged. Named
                    first is the matrix whose swing has grown most over its own median.
Known false alarms: A swing that dies away before the loss feels it; small full-batch trainings have some. Where batches are
                    small v holds their noise, and there is neither such a decay nor such an alarm.
What to try:        A shorter memory: beta2 0.9. Two small full-batch trainings of 2,000 steps at rate 1e-3 had 17 spikes
                    at 0.999 and none at 0.9; at rate 5e-3 17 and 5; final losses as good. Where it is that short, half the
                    rate. Do not reset v: it would be 0 at a place of high curvature.
References:         Bai et al. 2025, arXiv 2506.04805 (the mechanism: v decays, curvature passes 2 / rate); Cohen et al.
                    2022, arXiv 2207.14484 (the edge of stability: an unstable direction grows by a steady factor).
                    g^2 / v below 0.25 is a decay at more than 3/4 of the fastest pace: v' / v = beta2 + (1 - beta2) g^2 / v.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.rates import beta2_of_tensors, rows_of
from stabkit.analyzers.series import Flags, Indices, episodes, known_median, lasts, log_of
from stabkit.analyzers.sweep import swept
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows, columns_for

__all__ = ["RULE", "DecoupledSecondMoment", "DecoupledSecondMomentThresholds"]

RULE = Rule(
    code="SK205",
    name="decoupled-second-moment",
    severity=Severity.WARNING,
    requires=(("beta2", "group"), ("grad_momentum_cosine", "tensor"), ("exp_avg_sq_mean", "tensor")),
    min_steps=50,
)

SHORT = 0.9
"""A beta2 whose second moment follows a swing that grows by a few per cent a step."""


@dataclass(frozen=True, kw_only=True)
class DecoupledSecondMomentThresholds(Thresholds):
    """When a second moment no longer follows the gradients."""

    early: int = 50
    """Steps at the start that are not judged."""
    window: int = 30
    """Records that are the recent past."""
    rises: int = 5
    """Steps in a row at which the swing has grown."""
    growth: float = 2.5
    """Swing over its recent median."""
    across: float = 0.6
    """Least swing as a share of the gradient: a cosine of 0.8."""
    usual: float = 0.5
    """Recent median of the gradient over the root of v-hat, at most."""
    ahead: int = 30
    """Steps within which the swing would reach the root of v-hat."""
    gap: int = 30
    """Steps between two alarms up to which they are one."""


class _Swing:
    """Gradients and second moments of the records that have all of both; worked out once the whole run was seen.

    Attributes:
        steps: int64 [n].
        total: [n], the swing of all tensors.
        across: [n], that as a share of the gradient.
        ratio: [n], norm of the gradient over root of the sum of v-hat.
    """

    metrics = ("grad_norm_used", "exp_avg_sq_mean", "grad_momentum_cosine")

    def __init__(self, run: RunLog) -> None:
        self._run = run
        self._total, self._size, self._room = np.full((3, len(run.stream.tensor_steps)), np.nan)

    def read(self, rows: Rows) -> None:
        """Take in the next block."""
        here = slice(rows.begin, rows.begin + len(rows))
        each, self._size[here], self._room[here] = _swings(self._run, rows)
        with np.errstate(invalid="ignore", over="ignore"):
            self._total[here] = np.sqrt((each**2).sum(axis=1))

    @cached_property
    def _rows(self) -> Indices:
        known = np.isfinite(self._total) & np.isfinite(self._room) & (self._size > 0) & (self._room > 0)
        return np.flatnonzero(known & (self._run.stream.tensor_steps >= 1))

    @cached_property
    def steps(self) -> Indices:
        """The steps."""
        return self._run.stream.tensor_steps[self._rows]

    @cached_property
    def total(self) -> Array:
        return self._total[self._rows]

    @cached_property
    def across(self) -> Array:
        return np.asarray(self.total / np.sqrt(self._size[self._rows]))

    @cached_property
    def ratio(self) -> Array:
        return np.asarray(np.sqrt(self._size[self._rows] / self._room[self._rows]))

    def each(self, begin: int, end: int) -> Array:
        """The swing of each tensor in some of the records [end - begin, tensors]."""
        rows = self._rows[begin:end]
        held = Rows(self._run, int(rows[0]), int(rows[-1]) + 1, columns_for(self.metrics))
        return _swings(self._run, held)[0][rows - held.begin]


class DecoupledSecondMoment:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: DecoupledSecondMomentThresholds | None = None) -> None:
        self.thresholds = thresholds or DecoupledSecondMomentThresholds()

    def sweeps(self) -> tuple[type[_Swing]]:
        """What it reads of the tensors."""
        return (_Swing,)

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding per event."""
        limits = self.thresholds
        swing = swept(run, _Swing)
        alarms, pace = self._alarms(run, swing)
        for first, last in episodes(alarms, limits.gap, swing.steps):
            yield self._finding(run, swing, first, last, float(pace[first]))

    def _alarms(self, run: RunLog, swing: _Swing) -> tuple[Flags, Array]:
        """Where all holds that the rule asks for [n], and the growth of log(swing) per step [n]."""
        limits, n = self.thresholds, len(swing.steps)
        alarms, pace = np.zeros(n, dtype=bool), np.full(n, np.nan)
        span = limits.window + limits.rises
        if n <= span:
            raise NotApplicable(f"{n} steps have gradients, momenta and second moments of all tensors; needs {span + 1}")
        logs, now = log_of(swing.total), np.arange(span, n)
        every = swing.steps[now] - swing.steps[now - limits.rises] == limits.rises
        if not every.any():
            raise NotApplicable("tensors were not measured at every step")
        with np.errstate(invalid="ignore", divide="ignore"):
            rising = (sliding_window_view(np.diff(logs), limits.rises)[now - limits.rises] > 0).all(axis=1)
            pace[now] = (logs[now] - logs[now - limits.rises]) / limits.rises
            usual = np.median(sliding_window_view(logs, limits.window)[now - span], axis=1)
            usual_ratio = np.median(sliding_window_view(swing.ratio, limits.window)[now - limits.window], axis=1)
            left = -np.log(swing.ratio[now] * swing.across[now]) / pace[now]
            alarms[now] = (
                every & rising & (logs[now] - usual > np.log(limits.growth)) & (swing.across[now] >= limits.across)
                & (swing.ratio[now] < 1) & (usual_ratio < limits.usual) & (left < limits.ahead)
            )  # fmt: skip
        alarms &= (swing.steps >= limits.early) & (rows_of(run, swing.steps) >= RULE.min_steps - 1)
        return alarms, pace

    def _finding(self, run: RunLog, swing: _Swing, first: int, last: int, pace: float) -> Finding:
        limits, step = self.thresholds, int(swing.steps[first])
        order, grown = self._order(run, swing, first)
        names = tuple(run.tensors[i].name for i in order)
        ratio, across = float(swing.ratio[first]), float(swing.across[first])
        left = max(1, round(-np.log(ratio * across) / pace))
        beta2 = float(beta2_of_tensors(run, rows_of(run, swing.steps[[first]]))[0, order[0]])
        advice, remedy = _advice(beta2)
        return found(
            RULE,
            message=f"gradients swing {100 * np.expm1(pace):.0f} % wider each step and in about {left} steps pass a second "
            f"moment that decays; most in {names[0]} at step {step}",
            first_step=step,
            last_step=int(swing.steps[last]),
            last_good_step=int(swing.steps[first - limits.rises]),
            state=State.ONGOING if lasts(last, len(swing.steps)) else State.RECOVERED,
            tensors=names[:5],
            evidence=(
                Evidence(metric="gradient over root of v-hat", observed=ratio, expected=1.0, step=step,
                         note=f"of all tensors; reached in about {left} steps"),
                Evidence(metric="swing over its recent median", observed=float(grown[order[0]]), expected=limits.growth,
                         step=step, tensor=names[0], note=f"of {limits.window} records"),
                Evidence(metric="share of the gradient across the momentum", observed=across, expected=limits.across,
                         step=step),
            ),
            advice=advice,
            remedy=remedy,
        )  # fmt: skip

    def _order(self, run: RunLog, swing: _Swing, first: int) -> tuple[list[int], Array]:
        """The matrices (all tensors where there is none), most grown first, and how much each tensor's swing has grown."""
        begin = first - self.thresholds.rises - self.thresholds.window
        past = known_median(swing.each(begin, begin + self.thresholds.window))
        with np.errstate(invalid="ignore", divide="ignore"):
            grown = np.nan_to_num(swing.each(first, first + 1)[0] / past, nan=0.0, posinf=0.0)
        matrices = [i for i, tensor in enumerate(run.tensors) if tensor.role in ("matrix", "embedding")]
        among = matrices or list(range(len(run.tensors)))
        return sorted(among, key=lambda i: -grown[i]), grown


def _swings(run: RunLog, rows: Rows) -> tuple[Array, Array, Array]:
    """Of some rows: each tensor's swing [rows, tensors], squared norm of the gradient [rows], sum of v-hat [rows]."""
    gradient, second = rows.table("grad_norm_used"), rows.table("exp_avg_sq_mean")
    numel = np.array([tensor.numel for tensor in run.tensors], dtype=np.float64)
    both = np.isfinite(gradient) & np.isfinite(second)  # neither of a tensor without a gradient, no v of a skipped step
    with np.errstate(invalid="ignore", over="ignore"):
        along = np.nan_to_num(np.clip(rows.table("grad_momentum_cosine"), 0, 1))
        each = np.where(both, gradient * np.sqrt(1 - along**2), 0.0)
        return each, np.where(both, gradient**2, 0.0).sum(axis=1), np.where(both, second * numel, 0.0).sum(axis=1)


def _advice(beta2: float) -> tuple[str, dict[str, float]]:
    if beta2 > SHORT:
        return (
            f"Lower beta2 from {beta2:g} to {SHORT:g}: the second moment then follows the gradients within about "
            f"{1 / (1 - SHORT):.0f} steps instead of {1 / (1 - beta2):.0f}.",
            {"beta2": SHORT},
        )
    return f"Lower the rate by a factor of 0.5 from here on: at beta2 {beta2:g} memory is not the cause.", {"lr_factor": 0.5}
