"""SK305 gradient-underflow.

What it reports:    Gradients computed in float16 that are too small for it: most of their elements are exactly 0.
Why it matters:     The smallest number of float16 is 6e-8. What is smaller becomes 0 without a sign: those weights are not
                    trained any more, the others by a gradient of one or two digits. The loss scale is there to prevent it;
                    without a GradScaler, or under a scale that has collapsed or was fixed too low, nothing does.
How it decides:     Of a matrix, how large its gradient's elements other than 0 are (their root mean square, before clipping)
                    when multiplied by the loss scale, as float16 saw them: below 8 times its smallest number, while 70 % of the
                    elements or more are 0, in the median of 20 measured steps; and that of matrices that hold a tenth of all
                    matrix elements, while some matrix has a gradient that is not all 0 and as small. In small networks up to 60
                    % of zeros left no mark on the loss. So zeros of sparse inputs, dead units, masks and experts without a
                    token do not count: what is not 0 beside them is large. Embeddings, whose rows are mostly 0, are left out,
                    and so are vectors. Without a scaler the scale is 1.
Known false alarms: None known: gradients that do vanish, in a run that has learned everything, underflow too, and it does no
                    harm.
What to try:        bfloat16, whose smallest number is that of float32; in float16 a GradScaler, with a scale that may grow.
References:         Micikevicius et al., Mixed Precision Training (arXiv 1710.03740), section 3.2: gradients of small magnitude
                    become zeros in float16; scaling the loss by 8 was enough for one network that diverged without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.analyzers.base import NoOccasion, NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.rates import rows_of
from stabkit.analyzers.series import Flags, Indices
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["RULE", "GradientUnderflow", "GradientUnderflowThresholds"]

RULE = Rule(
    code="SK305",
    name="gradient-underflow",
    severity=Severity.WARNING,
    requires=(("grad_zero_fraction", "tensor"), ("grad_norm_used", "tensor")),
    min_steps=20,
)
SMALLEST = 2.0**-24
"""Of float16, other than 0."""


@dataclass(frozen=True, kw_only=True)
class GradientUnderflowThresholds(Thresholds):
    """When too much is lost."""

    size: float = 8.0
    """Size of what is not 0, in smallest numbers."""
    zeros: float = 0.7
    """Share of zeros in a matrix."""
    part: float = 0.1
    """Share of all matrix elements that are in such matrices. A small GPT that lost those of its queries and keys and one
    more, a fifth in all, learned half as fast."""
    window: int = 20
    """Measured steps whose median is judged."""


class GradientUnderflow:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: GradientUnderflowThresholds | None = None) -> None:
        self.thresholds = thresholds or GradientUnderflowThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding: where the medians first fall below the limits."""
        if not any(event.get("event") == "autocast" and event.get("dtype") == "float16" for event in run.events):
            raise NoOccasion("nothing was computed under float16 autocast")
        judged = np.array([tensor.role == "matrix" for tensor in run.tensors], dtype=bool)
        limits, table = self.thresholds, run.table("grad_zero_fraction")
        scale = _scale(run)[rows_of(run, table.steps)]
        rows = np.flatnonzero(np.isfinite(scale) & ~_skipped(run)[rows_of(run, table.steps)] & (table.steps > 0))
        if not judged.any() or len(rows) < limits.window:
            raise NotApplicable(f"{len(rows)} steps of {judged.sum()} matrices were measured; needs {limits.window}")
        zeros = table.values[rows][:, judged]
        numel = np.array([tensor.numel for tensor in run.tensors], dtype=np.float64)[judged]
        with np.errstate(over="ignore", invalid="ignore"):
            size = _size(run, zeros, numel, rows, judged) * scale[rows][:, None] / SMALLEST
            medians = [np.median(sliding_window_view(values, limits.window, axis=0), axis=-1) for values in (zeros, size)]
        lost = (medians[0] >= limits.zeros) & (medians[1] < limits.size)
        tiny = (medians[1] > 0) & (medians[1] < limits.size)
        lost &= tiny.any(axis=1, keepdims=True)  # all zeros alone may be an expert that had no token
        low = (lost * numel).sum(axis=1) >= limits.part * numel.sum()
        if low.any():
            at = int(np.argmax(low))
            ended = int(np.flatnonzero(low)[-1])
            steps = table.steps[rows]
            step, begin = int(steps[at + limits.window - 1]), int(steps[at])
            order = np.argsort(np.where(lost[at], -medians[0][at], 1.0), kind="stable")[: int(lost[at].sum())]
            names = tuple(np.array(table.tensors)[judged][order].tolist())
            share = float(medians[0][at][order[0]])
            used = float(scale[rows[at + limits.window - 1]])
            scaled = run.has("loss_scale") and bool(np.isfinite(run.series("loss_scale").values[run.steps == step]).all())
            under = f"at loss scale {used:.6g}" if scaled else "without a loss scale"
            yield found(
                RULE,
                message=f"{share:.0%} of the gradient of {names[0]} are 0 in the steps up to {step}: too small for float16 "
                f"{under}",
                first_step=step,
                last_step=int(steps[ended + limits.window - 1]),
                event_step=begin,
                last_good_step=begin - 1,
                state=State.ONGOING if low[-1] else State.RECOVERED,
                tensors=names[:5],
                evidence=(
                    Evidence(metric="grad_zero_fraction", observed=share, expected=limits.zeros, step=step, tensor=names[0],
                             note=f"median of {limits.window} steps"),
                    Evidence(metric="size of the others", observed=float(medians[1][at][order[0]]) * SMALLEST,
                             expected=limits.size * SMALLEST, step=step, tensor=names[0], note="as float16 saw it"),
                ),
                advice="Autocast to bfloat16 instead of float16"
                + (": its smallest number is that of float32. In float16 let the scale grow: it would take one of about "
                   if scaled else ", or use a GradScaler: it would take a scale of about ")
                + f"{_needed(used, float(medians[1][at][order[0]])):.0f}.",
                remedy={"bfloat16": 1.0},
            )  # fmt: skip


def _needed(scale: float, size: float) -> float:
    """The power of 2 as scale under which what is not 0 would be 1,024 times the smallest number."""
    return float(2 ** np.ceil(np.log2(1024 * scale / max(size, 1.0))))


def _scale(run: RunLog) -> Array:
    """The loss scale of each step; 1 where there was none."""
    return np.nan_to_num(run.stream.step_values.get("loss_scale", np.ones(len(run.steps))), nan=1.0)


def _skipped(run: RunLog) -> Flags:
    skipped = run.stream.step_values.get("skipped")
    return np.zeros(len(run.steps), dtype=bool) if skipped is None else skipped == 1


def _size(run: RunLog, zeros: Array, numel: Array, rows: Indices, judged: Flags) -> Array:
    """Root mean square of the elements other than 0 before clipping [rows, matrices]; 0 where there are none."""
    norm = run.table("grad_norm_used").values[rows][:, judged]
    steps = run.table("grad_norm_used").steps[rows]
    clipped = run.stream.step_values.get("clip_coefficient", np.ones(len(run.steps)))[rows_of(run, steps)]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        norm = norm / np.nan_to_num(clipped, nan=1.0)[:, None]
        return np.asarray(np.where(zeros < 1, norm / np.sqrt(numel * (1 - zeros)), 0.0))
