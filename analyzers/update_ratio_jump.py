"""SK206 update-ratio-jump.

What it reports:    A matrix that moves many times further in one step than is usual for it.
Why it matters:     What was learnt at the usual step length does not bear one ten times as long. A rate that jumps when a run
                    is resumed, or at the seam of two schedules, does its harm at once and is not to be seen in the loss before.
How it decides:     Update norm over weight norm of a matrix, against its own median of the last 500 records (at least 20) and
                    against the largest of the last 100: above 10 times and 3 times; or, where the rate rises at this very step
                    to more than twice the highest so far, above 3 times the median and 1.5 times the largest. Up to the highest
                    rate so far a step is measured per unit of rate, so that a schedule may come back to a rate it had: a warm
                    restart is no jump. Matrices that start at (almost) zero are left out, and so is a ratio below
                    1e-3, a usual one in training. The larger the model,
                    the more matrices that could stand out by chance: of n matrices the first limit is 10 + log2(n). LBFGS is
                    not judged: it takes its step lengths from curvature.
Known false alarms: A deliberate jump of the rate, such as a new phase of training; a head that is trained anew.
What to try:        After a jump of the rate: the rate of the step before, from here on times what it jumped by. Else clip the
                    gradient norm at the limit computed from the run's own recent norms.
References:         Kosson et al. 2024, arXiv 2305.17212: in balance the ratio of a tensor keeps to sqrt(2 rate decay). Adam's
                    step cannot grow beyond (1 - beta1) / sqrt(1 - beta2) by one gradient (3.2 at 0.9 and 0.999), which is why a
                    factor of 10 is not a matter of one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.analyzers.base import NoOccasion, NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.norms import usual_clip
from stabkit.analyzers.rates import of_tensors, rows_of
from stabkit.analyzers.series import Flags, episodes, known_max, known_median, lasts
from stabkit.analyzers.start import early_updates
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["RULE", "UpdateRatioJump", "UpdateRatioJumpThresholds"]

RULE = Rule(
    code="SK206",
    name="update-ratio-jump",
    severity=Severity.WARNING,
    requires=(("lr", "group"), ("update_ratio", "tensor")),
    min_steps=21,
)


@dataclass(frozen=True, kw_only=True)
class UpdateRatioJumpThresholds(Thresholds):
    """When an update is too long for its tensor."""

    history: int = 500
    """Records of the tensor that are recent."""
    recent: int = 100
    """Of these the last, whose largest counts: the first steps of a training are longer than all that follow."""
    least: int = 20
    """Records needed before one is judged."""
    jump: float = 10.0
    """Update ratio over its recent median."""
    over_largest: float = 3.0
    """Update ratio over the largest recent one."""
    rate_jump: float = 2.0
    """Rate over the highest so far from which the two limits below hold instead."""
    jump_with_rate: float = 3.0
    """Update ratio over its recent median, where the rate jumped."""
    over_largest_with_rate: float = 1.5
    """Update ratio over the largest recent one, where the rate jumped."""
    smallest: float = 1e-3
    """Update ratio below which a step is no matter."""
    gap: int = 30
    """Steps between two jumps up to which they are one."""


class UpdateRatioJump:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: UpdateRatioJumpThresholds | None = None) -> None:
        self.thresholds = thresholds or UpdateRatioJumpThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding per jump."""
        if run.stream.optimizer == "LBFGS":
            raise NoOccasion("LBFGS takes the length of its steps from curvature, not from a rate")
        limits = self.thresholds
        table = early_updates(run).table
        steps, ratios = table.steps, table.values
        if len(steps) <= limits.least:
            raise NotApplicable(f"{len(steps)} measured steps; needs {limits.least + 1}")
        rows = rows_of(run, steps)
        lr = of_tensors(run, "lr", rows)
        before = np.concatenate([lr[:1], np.fmax.accumulate(lr)[:-1]])
        per_rate = _per_rate(ratios, np.fmin(lr, before))
        out, jumps = self._out(ratios, per_rate, lr > limits.rate_jump * before)
        out &= (rows >= RULE.min_steps - 1)[:, None]
        at_all: Flags = np.asarray(out.any(axis=1))
        for first, last in episodes(at_all, limits.gap, steps):
            order = [i for i in np.argsort(-np.nan_to_num(jumps[first]), kind="stable").tolist() if out[first, i]]
            i = order[0]
            step, ratio, jump = int(steps[first]), float(ratios[first, i]), float(jumps[first, i])
            cause = _Rate(float(lr[first, i]), float(before[first, i]), float(lr[max(0, first - 1), i]))
            jumped = cause.now > limits.rate_jump * cause.before
            advice, remedy = _advice(run, table.tensors[i], step, cause if jumped else None)
            yield found(
                RULE,
                message=f"step {step} moved {table.tensors[i]} {jump:.3g} times as far as is usual for it"
                + (f": the rate jumped from {cause.before:.3g} to {cause.now:.3g}" if jumped else ""),
                first_step=step,
                last_step=int(steps[last]),
                last_good_step=step - 1,
                state=State.ONGOING if lasts(last, len(steps)) else State.RECOVERED,
                tensors=tuple(table.tensors[j] for j in order[:5]),
                evidence=(
                    Evidence(metric="update_ratio", observed=ratio, expected=ratio / jump, step=step,
                             tensor=table.tensors[i], note="recent median at this rate"),
                    Evidence(metric="lr", observed=cause.now, expected=cause.before, step=step, note="highest before"),
                ),
                advice=advice,
                remedy=remedy,
            )  # fmt: skip

    def _out(self, ratios: Array, per_rate: Array, rate_jumped: Flags) -> tuple[Flags, Array]:
        """[steps, tensors]: which updates stand out, and how far above the recent median (NaN where that was not asked)."""
        limits, tensors = self.thresholds, ratios.shape[1]
        out, jumps = np.zeros(ratios.shape, dtype=bool), np.full(ratios.shape, np.nan)
        alone = limits.jump + np.log2(max(1, tensors))
        jump = np.where(rate_jumped, limits.jump_with_rate, alone)
        over = np.where(rate_jumped, limits.over_largest_with_rate, limits.over_largest)
        low = np.nan_to_num(per_rate, nan=0.0)
        recent = sliding_window_view(low, limits.least, axis=0)[:-1].max(axis=-1)  # of the records before: few pass this
        may = np.zeros_like(out)
        may[limits.least :] = (low[limits.least :] > over[limits.least :] * recent) & (recent > 0)
        may &= ratios > limits.smallest
        for row in np.flatnonzero(may.any(axis=1)).tolist():
            columns = np.flatnonzero(may[row])
            past = per_rate[max(0, row - limits.history) : row][:, columns]
            jumps[row, columns] = per_rate[row, columns] / known_median(past)
            enough = np.isfinite(past).sum(axis=0) >= limits.least
            largest = per_rate[row, columns] > over[row, columns] * known_max(past[-limits.recent :])
            out[row, columns] = enough & largest & (jumps[row, columns] > jump[row, columns])
        return out, jumps


@dataclass(frozen=True)
class _Rate:
    """The rate of a step, the highest before it, and that of the measured step before."""

    now: float
    before: float
    last: float


def _per_rate(ratios: Array, lr: Array) -> Array:
    """Update ratios per unit of rate; NaN where either is 0 or unknown."""
    quotient: Array = np.divide(ratios, lr, out=np.full(ratios.shape, np.nan), where=(ratios > 0) & (lr > 0))
    return quotient


def _advice(run: RunLog, tensor: str, step: int, cause: _Rate | None) -> tuple[str, dict[str, float]]:
    if cause:
        usual = cause.last if cause.last > 0 else cause.before
        return (
            f"Multiply the rates from step {step} on by {usual / cause.now:.2g}: {usual:.3g} as before instead of "
            f"{cause.now:.3g}. Or raise it over a warmup.",
            {"lr_factor": usual / cause.now},
        )
    clip = usual_clip(run, step)
    if clip is None:
        return f"Look at the batch and the state of step {step}; restart from before it.", {}
    return (
        f"Clip the gradient norm at {clip:.2g}, the run's own recent median plus 3 robust standard deviations, and look at the "
        f"optimizer's state of {tensor} at step {step}.",
        {"clip_norm": clip},
    )
