"""SK401 clip-before-unscale.

What it reports:    Gradients that were clipped while they still carried the loss scale.
Why it matters:     The limit is meant for the gradient, not for the gradient times 65,536. Every step is clipped, to a
                    limit as many times smaller as the scale is large; where the scale changes, so does the limit. SGD
                    stands still; Adam takes every gradient to be of the same size, and eps begins to matter.
How it decides:     The last clipping call before the step came after backward and before `scaler.unscale_`, with a scale
                    other than 1 and a limit under a hundredth of it. One step is enough: the order of calls is a fact,
                    and the step's gradient is already wrong. A limit that was multiplied by the scale is not so small,
                    and a call without a limit only measures.
Known false alarms: A limit multiplied by the scale that was below 0.01 before. Unscaling by hand through `p.grad.data`,
                    which leaves no trace.
What to try:        `scaler.unscale_(optimizer)` on the line before the clipping call; `scaler.step` knows of it.
References:         PyTorch documentation, automatic mixed precision examples, "Gradient clipping".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.habit import habit, if_recorded
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "ClipBeforeUnscale", "ClipBeforeUnscaleThresholds"]

RULE = Rule(
    code="SK401",
    name="clip-before-unscale",
    severity=Severity.ERROR,
    requires=(("loss_scale", "step"), ("clip_scale", "step"), ("clips_after_backward", "step")),
)


@dataclass(frozen=True, kw_only=True)
class ClipBeforeUnscaleThresholds(Thresholds):
    """What counts as a limit that forgot the scale."""

    limit: float = 0.01
    """Limit over scale below which the limit was not multiplied by it: published limits lie between 0.1 and 10."""


class ClipBeforeUnscale:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: ClipBeforeUnscaleThresholds | None = None) -> None:
        self.thresholds = thresholds or ClipBeforeUnscaleThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding, at the first such step."""
        scale = run.series("clip_scale").values
        limit = np.fmin(if_recorded(run, "clip_max_norm"), if_recorded(run, "clip_value"))
        scaled = (run.series("clips_after_backward").values > 0) & (scale != 1) & ~np.isnan(scale)
        forgotten = habit(run, scaled & (limit < self.thresholds.limit * scale), 1)
        if forgotten is None:
            if scaled.any() and np.isnan(limit[scaled]).all():
                raise NotApplicable("gradients were clipped with the loss scale on, by calls whose limits are not known")
            return
        at = int(np.flatnonzero(run.steps == forgotten.begin)[0])
        effective = limit[at] / scale[at]
        yield found(
            RULE,
            message=f"step {forgotten.begin} clipped at {limit[at]:.3g} gradients still multiplied by the loss scale "
            f"{scale[at]:.6g}: a limit of {effective:.3g}",
            evidence=(
                Evidence(metric="clip_scale", observed=scale[at], expected=1.0, step=forgotten.begin, note="after unscale_"),
                Evidence(metric="clip_max_norm" if limit[at] == if_recorded(run, "clip_max_norm")[at] else "clip_value",
                         observed=limit[at], step=forgotten.begin, note="the limit as given"),
            ),
            advice=f"Call scaler.unscale_(optimizer) on the line before the clipping call: the limit {limit[at]:.3g} is then "
            f"one of the gradient, not {effective:.3g}.",
            remedy={"unscale_first": 1.0},
            **forgotten.span(),
        )  # fmt: skip
