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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stabkit.analyzers.base import NoOccasion, NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.norms import usual_clip
from stabkit.analyzers.rates import groups_of, rows_of
from stabkit.analyzers.series import Flags, Indices, episodes, known_max, known_median, lasts, moving_max
from stabkit.analyzers.start import early_ratios, judged_matrices
from stabkit.analyzers.sweep import Carry, swept
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows

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
        jumps = swept(run, self._begin)
        steps = jumps.steps
        for first, last in episodes(jumps.told, limits.gap, steps):
            columns, ratios, far = jumps.at[first]
            order = columns[np.argsort(-far, kind="stable")].tolist()
            i, place = order[0], int(np.argmax(far))
            name, step, ratio, jump = run.tensors[i].name, int(steps[first]), float(ratios[place]), float(far[place])
            cause = jumps.rate(i, first)
            jumped = cause.now > limits.rate_jump * cause.before
            advice, remedy = _advice(run, name, step, cause if jumped else None)
            yield found(
                RULE,
                message=f"step {step} moved {name} {jump:.3g} times as far as is usual for it"
                + (f": the rate jumped from {cause.usual:.3g} to {cause.now:.3g}" if jumped else ""),
                first_step=step,
                last_step=int(steps[last]),
                last_good_step=step - 1,
                state=State.ONGOING if lasts(last, len(steps)) else State.RECOVERED,
                tensors=tuple(run.tensors[j].name for j in order[:5]),
                evidence=(
                    Evidence(metric="update_ratio", observed=ratio, expected=ratio / jump, step=step,
                             tensor=name, note="recent median at this rate"),
                    Evidence(metric="lr", observed=cause.now, expected=cause.before, step=step, note="highest before"),
                ),
                advice=advice,
                remedy=remedy,
            )  # fmt: skip

    def sweeps(self) -> tuple[Callable[[RunLog], _Jumps]]:
        """What it reads of the tensors."""
        return (self._begin,)

    def _begin(self, run: RunLog) -> _Jumps:
        return _Jumps(run, self.thresholds)


class _Jumps:
    """The updates that stand out.

    Attributes:
        steps: int64 [n], the measured steps from 1 on.
        told: [n], at which of them any does.
        at: By row: the tensors, their update ratios, and how many times their recent median per rate these are.
    """

    metrics = ("update_ratio",)

    def __init__(self, run: RunLog, limits: UpdateRatioJumpThresholds) -> None:
        self._limits, self._judged = limits, judged_matrices(run)
        self._step0 = int(np.searchsorted(run.stream.tensor_steps, 1))
        self.steps: Indices = run.stream.tensor_steps[self._step0 :]
        if len(self.steps) <= limits.least:
            raise NotApplicable(f"{len(self.steps)} measured steps; needs {limits.least + 1}")
        rows = rows_of(run, self.steps)
        self._may_judge: Flags = rows >= RULE.min_steps - 1
        self._now, self._groups = run.table("lr").values[rows], groups_of(run, "lr")
        self._before = np.concatenate([self._now[:1], np.fmax.accumulate(self._now)[:-1]])
        self.told: Flags = np.zeros(len(self.steps), dtype=bool)
        self.at: dict[int, tuple[Indices, Array, Array]] = {}
        self._recent = Carry(int(max(limits.history, limits.least)))

    def rate(self, tensor: int, row: int) -> _Rate:
        """What the rate of a tensor was at a row and before it."""
        group = self._groups[tensor]
        now, before, last = self._now[row, group], self._before[row, group], self._now[max(0, row - 1), group]
        return _Rate(float(now), float(before), float(last))

    def read(self, rows: Rows) -> None:
        """Take in the next block."""
        limits, skipped = self._limits, max(self._step0 - rows.begin, 0)
        ratios = early_ratios(rows, self._judged)[skipped:]
        begin = rows.begin + skipped - self._step0
        now, before = (rates[begin : begin + len(ratios)] for rates in (self._now, self._before))
        rate_jumped = now > limits.rate_jump * before
        per_rate = self._recent(_per_rate(ratios, np.fmin(now, before)[:, self._groups]))
        past = len(per_rate) - len(ratios)
        may = self._may_stand_out(ratios, per_rate, rate_jumped) & self._may_judge[begin : begin + len(ratios), None]
        for row in np.flatnonzero(may.any(axis=1)).tolist():
            columns = np.flatnonzero(may[row])
            jumped = rate_jumped[row, self._groups[columns]]
            self._judge(begin + row, columns, ratios[row, columns], per_rate[: past + row + 1, columns], jumped)

    def _may_stand_out(self, ratios: Array, per_rate: Array, rate_jumped: Flags) -> Flags:
        """[rows, tensors]: what is above the largest of the records just before. Only those few are looked at closely."""
        limits, n = self._limits, len(ratios)
        may = np.zeros(ratios.shape, dtype=bool)
        low = np.minimum(np.fmax(per_rate[-(n + limits.least) :], 0.0), np.finfo(float).max)
        if len(low) > limits.least:
            recent = moving_max(low, limits.least)[:-1]
            over: Any = limits.over_largest
            if rate_jumped.any():
                over = np.where(rate_jumped, limits.over_largest_with_rate, over)[-len(recent) :, self._groups]
            with np.errstate(over="ignore"):
                may[-len(recent) :] = (low[limits.least :] > over * recent) & (recent > 0)
        return may & (ratios > limits.smallest)

    def _judge(self, row: int, columns: Indices, ratios: Array, per_rate: Array, rate_jumped: Flags) -> None:
        """Look closely at one step of some tensors: their ratios, and what these were per rate up to it [records, tensors]."""
        limits = self._limits
        now, past = per_rate[-1], per_rate[max(0, len(per_rate) - 1 - limits.history) : -1]
        alone = limits.jump + np.log2(max(1, len(self._groups)))
        over = np.where(rate_jumped, limits.over_largest_with_rate, limits.over_largest)
        with np.errstate(over="ignore"):
            jumps = now / known_median(past)
            far = (now > over * known_max(past[-limits.recent :])) & (np.isfinite(past).sum(axis=0) >= limits.least)
        far &= jumps > np.where(rate_jumped, limits.jump_with_rate, alone)
        if far.any():
            self.told[row] = True
            self.at[row] = columns[far], ratios[far], jumps[far]


@dataclass(frozen=True)
class _Rate:
    """The rate of a step, the highest before it, and that of the measured step before."""

    now: float
    before: float
    last: float

    @property
    def usual(self) -> float:
        """What it was until now: 0 was no rate to go by."""
        return self.last if self.last > 0 else self.before


def _per_rate(ratios: Array, lr: Array) -> Array:
    """Update ratios per unit of rate; NaN where either is 0 or unknown."""
    quotient: Array = np.divide(ratios, lr, out=np.full(ratios.shape, np.nan), where=(ratios > 0) & (lr > 0))
    return quotient


def _advice(run: RunLog, tensor: str, step: int, cause: _Rate | None) -> tuple[str, dict[str, float]]:
    if cause:
        factor = cause.usual / cause.now
        return (
            f"Multiply the rates from step {step} on by {factor:.2g}: {cause.usual:.3g} as before instead of {cause.now:.3g}. "
            "Or raise it over a warmup.",
            {"lr_factor": factor},
        )
    clip = usual_clip(run, step)
    if clip is None:
        return f"Look at the batch and the state of step {step}; restart from before it.", {}
    return (
        f"Clip the gradient norm at {clip:.2g}, the run's own recent median plus 3 robust standard deviations, and look at the "
        f"optimizer's state of {tensor} at step {step}.",
        {"clip_norm": clip},
    )
