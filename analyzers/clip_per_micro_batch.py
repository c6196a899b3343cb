"""SK405 clip-per-micro-batch.

What it reports:    A gradient that was clipped before it was complete: after each micro-batch, or after some.
Why it matters:     What is clipped after a micro-batch is the sum so far: the first micro-batches are scaled down again and
                    again, so the step follows the last ones, and the limit holds for none of it.
How it decides:     At 3 steps in a row a further backward added to gradients that had been clipped. Another clipping call
                    at the end does not undo it. Losses that are clipped one by one on parameters of their own are not
                    meant: the later backward does not reach what was clipped.
Known false alarms: Gradients of two losses balanced on purpose by clipping the one before the other is added.
What to try:        Clip once, after the last micro-batch.
References:         PyTorch documentation, automatic mixed precision examples, "Gradient accumulation": unscale_ and clipping
                    come where the step does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.habit import habit, need_backward, need_clipping
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "ClipPerMicroBatch", "ClipPerMicroBatchThresholds"]

RULE = Rule(
    code="SK405",
    name="clip-per-micro-batch",
    severity=Severity.WARNING,
    requires=(("clips_between_backwards", "step"), ("backward_count", "step")),
    min_steps=3,
)


@dataclass(frozen=True, kw_only=True)
class ClipPerMicroBatchThresholds(Thresholds):
    """When it is a habit."""

    steps: int = 3
    """Such steps in a row."""


class ClipPerMicroBatch:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: ClipPerMicroBatchThresholds | None = None) -> None:
        self.thresholds = thresholds or ClipPerMicroBatchThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding."""
        need_backward(run)
        need_clipping(run)
        between, backwards = run.series("clips_between_backwards").values, run.series("backward_count").values
        often = habit(run, between > 0, self.thresholds.steps)
        if often is None:
            return
        at = int(np.flatnonzero(run.steps == often.told)[0])
        n, clips = int(backwards[at]), int(between[at])
        yield found(
            RULE,
            message=f"step {often.told} clipped a gradient of {n} backward calls before it was complete, "
            f"{clips} time{'s' if clips > 1 else ''}",
            evidence=(
                Evidence(metric="clips_between_backwards", observed=float(clips), expected=0.0, step=often.told),
                Evidence(metric="backward_count", observed=float(n), step=often.told),
            ),
            advice=f"Move the clipping call out of the loop over micro-batches: once, after the last of the {n} backward "
            "calls and before optimizer.step().",
            **often.span(),
        )
