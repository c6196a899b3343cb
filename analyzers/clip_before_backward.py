"""SK404 clip-before-backward.

What it reports:    Clipping that acts on no gradient of the step: before backward, or after the step.
Why it matters:     The optimizer gets the gradient as it is. A spike the limit was set for goes into the weights, and the
                    logged norm is that of the step before, or 0.
How it decides:     At 3 steps in a row, every clipping call since the step before came while there was no gradient yet, or
                    only what that step had left; none came after backward. A call without a limit only measures. Steps
                    whose gradients were thrown away in between, as with a GAN's, are not judged.
Known false alarms: Two optimizers that step in turn, of which one is to go unclipped, where the clipping call of the other
                    is given the gradients of both.
What to try:        `clip_grad_norm_` between the last `backward()` and `optimizer.step()`.
References:         PyTorch documentation, torch.nn.utils.clip_grad_norm_: "gradients are modified in-place".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.habit import habit, need_backward, need_clipping
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "ClipBeforeBackward", "ClipBeforeBackwardThresholds"]

RULE = Rule(
    code="SK404",
    name="clip-before-backward",
    severity=Severity.WARNING,
    requires=tuple((name, "step") for name in ("clips_before_backward", "clips_after_backward", "dropped_backwards")),
    min_steps=3,
)


@dataclass(frozen=True, kw_only=True)
class ClipBeforeBackwardThresholds(Thresholds):
    """When it is a habit."""

    steps: int = 3
    """Such steps in a row: a single clipping call between two steps may be a trial."""


class ClipBeforeBackward:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: ClipBeforeBackwardThresholds | None = None) -> None:
        self.thresholds = thresholds or ClipBeforeBackwardThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding."""
        need_backward(run)
        need_clipping(run)
        before = run.series("clips_before_backward").values
        acting = run.series("clips_between_backwards").values + run.series("clips_after_backward").values
        dropped, backwards = run.series("dropped_backwards").values, run.series("backward_count").values
        early = habit(run, (before > 0) & (acting == 0) & (dropped == 0) & (backwards > 0), self.thresholds.steps)
        if early is None:
            return
        at = int(np.flatnonzero(run.steps == early.told)[0])
        yield found(
            RULE,
            message=f"step {early.told} was not clipped, like the {self.thresholds.steps - 1} before it: "
            "the clipping call comes before backward",
            evidence=(
                Evidence(metric="clips_before_backward", observed=before[at], expected=0.0, step=early.told),
                Evidence(metric="clips_after_backward", observed=0.0, expected=before[at], step=early.told),
            ),
            advice="Move the clipping call to the line after the last backward() of the step and before optimizer.step().",
            **early.span(),
        )
