"""SK303 loss-scale-collapse.

What it reports:    A loss scale of float16 training that falls again and again, without the clean steps that would let it rise,
                    or that has come down to 1.
Why it matters:     Every halving is a step that was skipped because a gradient overflowed. Now and then that is how the scaler
                    finds its scale. One halving after the other means that gradients or activations outgrow the format: steps
                    are lost, then small gradients vanish under the low scale, and at the floor training stands still.
How it decides:     The scale is 8 times below the highest of the last 200 steps under which a step went through:
                    three halvings that no growth made up for. Where records are rarer two neighbours are compared, at
                    most 1,000 steps apart. The descent from the first scale is not judged, nor that after a rise by
                    more than a factor 2 (a scaler that was made anew): it ends with the first 20 steps without a
                    halving, or with the first one where a log begins in the midst of a run: a scale that lets a step
                    through is found. A scale that has come down to 1 or below is told in any case, and makes an error
                    of it. The tensor named is the last in the model whose gradient was not finite in the step skipped
                    last, which backward reached first; where the loss was not finite either, it was the forward pass
                    that overflowed, and none is named.
Known false alarms: Gradients that grow 8-fold for a good reason, such as a new stage of a curriculum. A scaler with a backoff
                    factor far below 1/2. Losses summed over very many elements, whose right scale is below 1.
What to try:        bfloat16, which needs no loss scale. Else what makes gradients grow: a lower rate, clipping after unscale_,
                    QK-norm; restarts with a higher scale only buy steps.
References:         BLOOM's 104B prequel: the loss scale pointed down 1,500 to 2,000 steps before the loss blew up. OPT (Zhang
                    et al. 2022, arXiv 2205.01068): the scale hit its floor and training ground to a halt; restarts bought about
                    100 steps. torch.amp.GradScaler and DeepSpeed halve at an overflow and double after 1,000 to 2,000 clean
                    steps; DeepSpeed gives up at its smallest scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from stabkit.analyzers.base import NoOccasion, Rule, Thresholds, found
from stabkit.analyzers.climb import in_the_midst
from stabkit.analyzers.level import skipped_steps
from stabkit.analyzers.series import Indices
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import rows_of_steps

__all__ = ["RULE", "LossScaleCollapse", "LossScaleCollapseThresholds"]

RULE = Rule(
    code="SK303",
    name="loss-scale-collapse",
    severity=Severity.WARNING,
    requires=(("loss_scale", "step"),),
    min_steps=2,
)


@dataclass(frozen=True, kw_only=True)
class LossScaleCollapseThresholds(Thresholds):
    """When a falling scale is more than the search for the right one."""

    fall: float = 8.0
    """Fall from the highest scale of the window: three halvings. Healthy scales swing by 2."""
    window: int = 200
    """Steps."""
    rare: int = 1000
    """Steps between two records above which they are not compared: a scale may fall slowly for good."""
    settled: int = 20
    """Steps without a fall after which the descent from the first scale is over."""
    floor: float = 1.0
    """DeepSpeed's smallest scale, and the one without effect."""


@dataclass(frozen=True)
class _Fall:
    """A fall of the scale that is told.

    Attributes:
        begin: Row of the last record before it.
        row: Row at which it is told.
        end: Row after the last that belongs to it: that of the next fall, or the end of the log.
    """

    begin: int
    row: int
    end: int


class LossScaleCollapse:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: LossScaleCollapseThresholds | None = None) -> None:
        self.thresholds = thresholds or LossScaleCollapseThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding for every fall; another one needs a scale that has settled in between."""
        series = run.series("loss_scale")
        known = np.isfinite(series.values) & (series.values > 0)
        steps, scale = series.steps[known], series.values[known]
        if not np.any(np.diff(scale)):
            raise NoOccasion("the loss scale never changes")
        for fall in self._falls(steps, scale):
            yield self._finding(run, steps, scale, fall)

    def _falls(self, steps: Indices, scale: Array) -> list[_Fall]:
        limits = self.thresholds
        falls: list[_Fall] = []
        settled: int | None = None  # the row at which the descent from the first scale was over; None during it
        start = held = 0  # where the descent began; since when the scale has not fallen
        told = False  # whether the descent was told
        for row in (np.flatnonzero(np.diff(scale)) + 1).tolist():
            if scale[row] > 2 * scale[row - 1]:
                settled, start, held, told = None, row, row, False
                continue
            if scale[row] > scale[row - 1]:
                continue
            search = limits.settled if told or start or not in_the_midst(steps, limits.settled) else 1
            if settled is None and steps[row - 1] - steps[held] >= search:
                settled, start, told = held, held, False
            begin = self._highest(steps, scale, settled, row)
            if begin is None and not told and scale[row] <= limits.floor < scale[row - 1]:
                begin = start + int(np.argmax(scale[start:row]))
            if begin is not None:
                falls.append(_Fall(begin, row, len(steps)))
                settled, told = None, True
            held = row
        return [replace(fall, end=after.begin + 1) for fall, after in pairwise(falls)] + falls[-1:]

    def _highest(self, steps: Indices, scale: Array, settled: int | None, row: int) -> int | None:
        """The last row at which the scale was highest in the window, where it has fallen far enough since."""
        if settled is None or steps[row] - steps[row - 1] > self.thresholds.rare:
            return None
        first = max(settled, min(int(np.searchsorted(steps, steps[row] - self.thresholds.window)), row - 1))
        at_once = (np.diff(scale[first : row + 1]) < 0) & (np.diff(steps[first : row + 1]) == 1)
        entered = np.append(True, scale[first + 1 : row] != scale[first : row - 1])
        recent = np.where(at_once & entered, 0.0, scale[first:row])  # one that overflowed in its first step was too high
        begin = row - 1 - int(np.argmax(recent[::-1]))
        return begin if scale[begin] >= self.thresholds.fall * scale[row] else None

    def _finding(self, run: RunLog, steps: Indices, scale: Array, fall: _Fall) -> Finding:
        before, now, step = float(scale[fall.begin]), float(scale[fall.row]), int(steps[fall.row])
        lowest = fall.row + int(np.argmin(scale[fall.row : fall.end]))
        stopped = int(steps[fall.row - 1 : fall.end][np.flatnonzero(np.diff(scale[fall.row - 1 : fall.end]) < 0)[-1] + 1])
        begin = int(steps[fall.begin])
        inside = (run.steps >= begin) & (run.steps <= step)
        skips = int((skipped_steps(run) & inside).sum())
        tensors, forward = _overflowed(run, begin, step)
        where = " in the forward pass" if forward else f" in the gradient of {tensors[0]}" if tensors else ""
        still = fall.end == len(steps) and steps[-1] - stopped <= self.thresholds.settled
        skipped = [Evidence(metric="skipped", observed=float(skips), step=step, note=f"since step {begin}")] if skips else []
        return found(
            RULE,
            severity=Severity.ERROR if scale[lowest] <= self.thresholds.floor else Severity.WARNING,
            message=f"loss scale fell from {before:.6g} to {now:.6g} between step {begin} and step {step}: one overflow after "
            f"the other{where}",
            first_step=step,
            last_step=max(stopped, step),
            event_step=int(steps[lowest]),
            last_good_step=begin,
            state=State.ONGOING if still else State.RECOVERED,
            tensors=tensors[:5],
            evidence=(
                Evidence(metric="loss_scale", observed=now, expected=before, step=step, note=f"that of step {begin}"),
                *skipped,
            ),
            advice=f"Autocast to bfloat16 instead of float16: it needs no loss scale. In float16 restart from about step "
            f"{begin} "
            + ("and look at what makes activations grow." if forward else "at half the rate, with clipping after unscale_."),
            remedy={"bfloat16": 1.0},
        )  # fmt: skip


def _overflowed(run: RunLog, begin: int, step: int) -> tuple[tuple[str, ...], bool]:
    """The tensors with overflowed gradients at the step skipped last in a fall, the first reached by backward first; and
    whether it was the forward pass that overflowed, where the loss was seen."""
    rows = np.flatnonzero(skipped_steps(run) & (run.steps >= begin) & (run.steps < step))
    losses, seen = (run.stream.step_values.get(name) for name in ("loss", "loss_reduction"))
    if not len(rows):
        return (), False
    if losses is not None and seen is not None and seen[rows[-1]] > 0 and not np.isfinite(losses[rows[-1]]):
        return (), True
    if not run.has("grad_nonfinite", "tensor"):
        return (), False
    step = int(run.steps[rows[-1]])
    counts = rows_of_steps(run, step, step).table("grad_nonfinite")
    bad: list[int] = np.flatnonzero(counts[0] > 0)[::-1].tolist() if len(counts) else []
    return tuple(run.tensors[i].name for i in bad), False
