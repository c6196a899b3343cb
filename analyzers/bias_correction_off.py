"""SK105 bias-correction-off.

What it reports:    An optimizer of Adam's kind that does not correct its moments for their start at zero.
Why it matters:     The second moment starts much nearer to zero than the first (0.001 of a gradient's square, 0.1 of a
                    gradient), so that the first updates are several times larger than the rate says: 3 times at step 1 and
                    6 times ten steps later for betas of 0.9 and 0.999, just when a warmup is meant to keep them small.
How it decides:     At the optimizer's first step every element with a gradient moves by the rate if the moments are corrected,
                    and by (1 - beta1) / sqrt(1 - beta2) times the rate if not: nearly all tensors show the second number.
                    Betas for which it is within 20 % of 1 (such as 0.9 and 0.99) cannot be told apart.
Known false alarms: An optimizer that multiplies the rate by just this number for reasons of its own.
What to try:        Switch the correction on (correct_bias=True), or divide m by 1 - beta1**t and v by 1 - beta2**t.
References:         Kingma and Ba, Adam (arXiv 1412.6980), section 3. Mosbach et al., On the Stability of Fine-tuning BERT
                    (arXiv 2006.04884) and Zhang et al., Revisiting Few-sample BERT Fine-tuning (arXiv 2006.05987): without it,
                    fine-tuning runs failed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows

__all__ = ["RULE", "BiasCorrectionOff", "BiasCorrectionOffThresholds"]

RULE = Rule(
    code="SK105",
    name="bias-correction-off",
    severity=Severity.WARNING,
    requires=(("lr", "group"), ("beta1", "group"), ("beta2", "group"), ("applied_steps", "step"), ("grad_norm_used", "tensor")),
)


@dataclass(frozen=True, kw_only=True)
class BiasCorrectionOffThresholds(Thresholds):
    """What is told apart, and what is judged."""

    apart: float = 1.2
    """How far the uncorrected first update must be from the corrected one, as a factor, to be told from it."""
    near: float = 1.1
    """A tensor shows the number if its update is within this factor of it."""
    share: float = 0.8
    """Share of the tensors that must show it: one with tiny gradients may be held back by eps."""
    tensors: int = 2
    """Tensors that must be judged."""
    decay: float = 0.1
    """A tensor is left out where decay is more than this part of its update."""
    above_eps: float = 1e3
    """A tensor is judged where its gradients' RMS is so many eps."""


class BiasCorrectionOff:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: BiasCorrectionOffThresholds | None = None) -> None:
        self.thresholds = thresholds or BiasCorrectionOffThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding, at the optimizer's first step."""
        row = _first_step(run)
        step = int(run.steps[row])
        groups = np.array([t.group or 0 for t in run.tensors])
        lr, beta1, beta2 = (run.table(name).values[row][groups] for name in ("lr", "beta1", "beta2"))
        with np.errstate(invalid="ignore", divide="ignore"):
            expected = (1 - beta1) / np.sqrt(1 - beta2)
            distinct = np.isfinite(expected) & (np.abs(np.log(expected)) > math.log(self.thresholds.apart))
        if not distinct.any():
            raise NotApplicable("with these betas the first update without correction is nearly the corrected one")
        seen = np.where(distinct, self._moves(run, step, lr, row, groups), np.nan)
        judged = np.flatnonzero(np.isfinite(seen))
        if len(judged) < self.thresholds.tensors:
            raise NotApplicable(f"the first update can be judged in {len(judged)} tensors; needs {self.thresholds.tensors}")
        off = np.abs(np.log(seen[judged] / expected[judged])) < math.log(self.thresholds.near)
        if np.mean(off) < self.thresholds.share:
            return
        place = int(judged[np.argmax(off)])
        last, largest = _lasting(float(beta1[place]), float(beta2[place]), self.thresholds.near)
        end = min(step + last - 1, int(run.steps[-1]))
        yield found(
            RULE,
            message=f"no bias correction: step {step} moved {np.count_nonzero(off)} of {len(judged)} tensors by "
            f"{np.median(seen[judged]):.3g} times the rate, not by 1",
            first_step=step,
            last_step=end,
            event_step=step,
            last_good_step=step - 1,
            state=State.ONGOING if end == run.steps[-1] else State.RECOVERED,
            tensors=tuple(run.tensors[i].name for i in judged[off]),
            evidence=(
                Evidence(metric="update_norm", observed=float(seen[place]), expected=float(expected[place]), step=step,
                         tensor=run.tensors[place].name, note="RMS over the rate; (1 - beta1) / sqrt(1 - beta2)"),
            ),
            advice="Switch the correction on (correct_bias=True), or divide m by 1 - beta1**t and v by 1 - beta2**t. Without "
            f"it updates are up to {largest:.2g} times what the rate says, and for {last} steps not what it says.",
        )  # fmt: skip

    def _moves(self, run: RunLog, step: int, lr: Array, row: int, groups: Array) -> Array:
        """RMS of each tensor's update over the rate, of the elements that had a gradient; NaN where it cannot be judged."""
        at = int(np.searchsorted(run.stream.tensor_steps, step))
        if at == len(run.stream.tensor_steps) or run.stream.tensor_steps[at] != step:
            raise NotApplicable(f"the tensors of step {step} were not measured")
        known = [name for name in ("applied_update_norm", "update_norm") if run.has(name, "tensor")]
        if not known:
            raise NotApplicable("the log has no update per tensor")
        numel = np.array([max(t.numel, 1) for t in run.tensors], dtype=np.float64)
        none = np.zeros(len(numel))
        row_of = Rows(run, at, at + 1)
        zeros = row_of.table("grad_zero_fraction")[0] if run.has("grad_zero_fraction", "tensor") else none
        moved = numel * (1 - zeros)
        fine = np.array([t.dtype not in ("float16", "bfloat16") for t in run.tensors], dtype=bool)
        decay, eps = (_values(run, name, row, groups) for name in ("weight_decay", "eps"))
        weights = row_of.table("weight_norm")[0] if run.has("weight_norm", "tensor") else none
        with np.errstate(invalid="ignore", divide="ignore"):
            moves = row_of.table(known[0])[0] / np.sqrt(moved) / lr
            gradients = row_of.table("grad_norm_used")[0] / np.sqrt(moved)
            judged = fine & (moves > 0) & (gradients > self.thresholds.above_eps * eps)
            judged &= ~(np.abs(decay) * weights / np.sqrt(numel) > self.thresholds.decay)
        return np.where(judged, moves, np.nan)


def _first_step(run: RunLog) -> int:
    """The row of the optimizer's first step."""
    skipped = run.series("skipped").values if run.has("skipped") else np.zeros(len(run.steps))
    rows = np.flatnonzero((run.series("applied_steps").values == 1) & (skipped == 0))
    if not len(rows):
        raise NotApplicable("the optimizer's first step is not in the log")
    return int(rows[0])


def _values(run: RunLog, name: str, row: int, groups: Array) -> Array:
    """A setting of each tensor's group, 0 where it has none."""
    known = run.has(name, "group")
    return np.nan_to_num(run.table(name).values[row][groups]) if known else np.zeros(len(groups))


def _lasting(beta1: float, beta2: float, near: float) -> tuple[int, float]:
    """For how many steps the updates are off by more than a factor, and the largest factor."""
    t = np.arange(1, min(100_000, math.ceil(10 / (1 - beta2))) + 1)
    factor = (1 - beta1**t) / np.sqrt(1 - beta2**t)
    return int(t[np.abs(np.log(factor)) > math.log(near)][-1]), float(factor.max())
