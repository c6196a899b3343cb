"""SK106 oversized-initialisation.

What it reports:    Initial weights so large that a small change of them changes the loss by a multiple of itself.
Why it matters:     A layer of gain 1 hands on a signal at the size it came. Above that every layer makes it larger, the first
                    outputs are sure and wrong, units and attention saturate. The optimizer then spends the run on undoing it:
                    steps of the usual size are small beside such weights, and what they learn at last is worse.
How it decides:     Two things at the first step whose loss and gradients are finite, of the first 10. Matrices with a gain
                    above 2, the root of mean square weight x fan-in, hold half of the elements of all matrices: torch's own
                    start has 0.58, He's for ReLU 1.41, the largest in use (tanh) 1.67. Of a matrix the shorter side is taken
                    for the fan-in, since some are stored the other way round. And the loss depends on them too much:
                    root of sum (gradient norm x weight norm)^2 is above 4 times the loss. Where a normalisation makes a
                    matrix scale-free, large weights have small gradients, and the product says so. Embeddings are left out.
Known false alarms: Weights that were trained before, at a loss that is already small. Losses near or below 0 at the first
                    step are not judged. Not seen: a single matrix that starts too large among many that do not.
What to try:        The initial weights of these matrices times 0.58 / gain: then they start as torch starts a Linear.
References:         Glorot and Bengio 2010; He et al. 2015, arXiv 1502.01852 (gains); Zhang et al. 2019, arXiv 1901.09321, and
                    Dauphin and Schoenholz 2019 (MetaInit) on starts at which the loss hardly follows its gradient. Small
                    healthy runs had at most 13 times their loss at gain 0.6; at gain 2.3 a GPT that failed had 8, at 2.9
                    a regression 60.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NoOccasion, NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.rates import rows_of
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog, TensorInfo
from stabkit.runlog.rows import Rows, rows_of_steps

__all__ = ["RULE", "OversizedInitialisation", "OversizedInitialisationThresholds"]

RULE = Rule(
    code="SK106",
    name="oversized-initialisation",
    severity=Severity.WARNING,
    requires=(("loss", "step"), ("weight_norm", "tensor"), ("grad_norm_used", "tensor")),
)
USUAL = 1 / math.sqrt(3)
"""Gain of torch's own Linear and Conv: uniform in +-1 / sqrt(fan-in)."""


@dataclass(frozen=True, kw_only=True)
class OversizedInitialisationThresholds(Thresholds):
    """When weights start too large."""

    gain: float = 2.0
    """Root of mean square weight x fan-in."""
    part: float = 0.5
    """Share of the elements of all matrices above that."""
    dependence: float = 4.0
    """How far the loss follows the weights: gradient norm x weight norm over loss, all of them together."""
    early: int = 10
    """Steps among which the first finite one is looked for."""


class OversizedInitialisation:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: OversizedInitialisationThresholds | None = None) -> None:
        self.thresholds = thresholds or OversizedInitialisationThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding."""
        limits = self.thresholds
        if run.steps[0] > 1:
            raise NotApplicable(f"the log begins at step {run.steps[0]}")
        columns = [i for i, t in enumerate(run.tensors) if t.role == "matrix" and t.numel and len(t.shape) >= 2]
        if not columns:
            raise NoOccasion("the optimizer has no matrix")
        start = Rows(run, 0, 1).table("weight_norm")[0, columns]
        step, follows = self._follows(run, columns, start)
        numel = np.array([run.tensors[i].numel for i in columns], dtype=np.float64)
        fan_in = np.array([_fan_in(run.tensors[i]) for i in columns], dtype=np.float64)
        gain = start * np.sqrt(fan_in / numel)
        large = gain > limits.gain
        together = float(np.sqrt((follows[large] ** 2).sum()))
        if numel[large].sum() < limits.part * numel.sum() or not together > limits.dependence:
            return
        order = [i for i in np.argsort(-follows, kind="stable").tolist() if large[i]]
        names = tuple(run.tensors[columns[i]].name for i in order)
        typical = _weighted_median(gain[large], numel[large])
        factor = float(f"{USUAL / typical:.2g}")
        yield found(
            RULE,
            message=f"{len(names)} matrices start with a gain of {typical:.2g}: at step {step} one per cent of their weights "
            f"is up to {together:.2g} % of the loss",
            first_step=step,
            last_step=step,
            last_good_step=0,
            state=State.RECOVERED if run.steps[-1] > step else State.ONGOING,
            tensors=names,
            evidence=(
                Evidence(metric="gain", observed=float(gain[order[0]]), expected=limits.gain, step=0, tensor=names[0],
                         note="rms of the weights x root of fan-in; 0.58 in torch"),
                Evidence(metric="gradient norm x weight norm over loss", observed=together, expected=limits.dependence,
                         step=step, note=f"of {len(names)} matrices"),
            ),
            advice=f"Start these {len(names)} matrices with {factor:.2g} times their weights: a gain of {USUAL:.2f}, as torch "
            "starts a Linear.",
            remedy={"init_factor": factor},
        )  # fmt: skip

    def _follows(self, run: RunLog, columns: list[int], weights: Array) -> tuple[int, Array]:
        """The first step at which all is finite, and gradient norm x first weight norm over loss of the matrices there."""
        early = rows_of_steps(run, 1, self.thresholds.early)
        gradients = early.table("grad_norm_used")
        clipped = run.stream.step_values.get("clip_coefficient", np.ones(len(run.steps)))
        losses = run.series("loss").values
        for row in range(len(early)):
            at = int(rows_of(run, early.steps[[row]])[0])
            with np.errstate(divide="ignore", invalid="ignore"):
                norm = gradients[row, columns] / np.nan_to_num(clipped[at], nan=1.0)
            if np.isfinite(norm).all() and np.isfinite(losses[at]):
                if not losses[at] > 0:
                    raise NotApplicable(f"the loss of step {run.steps[at]} is not above 0")
                return int(early.steps[row]), norm * weights / losses[at]
        raise NotApplicable(f"no step up to {self.thresholds.early} has a loss and all gradients")


def _fan_in(tensor: TensorInfo) -> int:
    """Inputs of an output: the shorter side of a matrix, channels x positions of a convolution in two dimensions or more.

    Three dimensions are a convolution over a line or a stack of matrices: the longer of the last two is no more than either.
    """
    if len(tensor.shape) == 2:
        return min(tensor.shape)
    return max(tensor.shape[1:]) if len(tensor.shape) == 3 else math.prod(tensor.shape[1:])


def _weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values, kind="stable")
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)])
