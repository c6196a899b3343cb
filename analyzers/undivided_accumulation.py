"""SK407 undivided-accumulation.

What it reports:    A step of several backward calls of the same kind of loss, none of which was divided.
Why it matters:     If the calls are micro-batches of one batch, the gradient is N times that of the batch: the rate of SGD
                    acts N times as high, a clipping limit N times as low, and both change with the number of micro-batches.
                    Adam divides the factor out, but for eps.
How it decides:     At 3 steps in a row several backward calls reached exactly the same parameters with losses of the same
                    first operations, all of them means, and nothing was multiplied or divided by anything: not the losses at
                    their end, by their number, a count of tokens or a weight, nor the gradients by hand. Where gradients
                    were thrown away before the step, as a discriminator's are, its two losses are meant to be added.
Known false alarms: Several losses that are meant to be added and look alike, such as two views or two tasks without parameters
                    of their own; a rate and a limit chosen for the sum; a division inside the loss function. This is
                    information, not a warning, for that reason.
What to try:        `(loss / N).backward()`.
References:         PyTorch documentation, automatic mixed precision examples, "Gradient accumulation":
                    loss = loss / iters_to_accumulate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.habit import habit, if_recorded, need_backward
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "UndividedAccumulation", "UndividedAccumulationThresholds"]

RULE = Rule(
    code="SK407",
    name="undivided-accumulation",
    severity=Severity.INFO,
    requires=tuple((name, "step") for name in ("undivided_losses", "dropped_backwards", "backward_count", "loss")),
    min_steps=3,
)


@dataclass(frozen=True, kw_only=True)
class UndividedAccumulationThresholds(Thresholds):
    """When it is a habit."""

    steps: int = 3
    """Such steps in a row: micro-batches left over make single ones."""


class UndividedAccumulation:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: UndividedAccumulationThresholds | None = None) -> None:
        self.thresholds = thresholds or UndividedAccumulationThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding."""
        need_backward(run)
        losses = np.where(run.series("dropped_backwards").values == 0, run.series("undivided_losses").values, 0)
        sums = habit(run, losses > 0, self.thresholds.steps)
        if sums is None:
            return
        at = int(np.flatnonzero(run.steps == sums.told)[0])
        n, limit = int(losses[at]), if_recorded(run, "clip_max_norm")[at]
        clipping = "" if np.isnan(limit) else f"; the limit {limit:.3g} acts on the sum as {limit / n:.3g} would on the mean"
        yield found(
            RULE,
            message=f"step {sums.told} added up {n} losses of the same kind, none divided by {n}",
            evidence=(
                Evidence(metric="undivided_losses", observed=float(n), expected=0.0, step=sums.told),
                Evidence(metric="loss", observed=float(run.series("loss").values[at]), step=sums.told, note=f"mean of the {n}"),
            ),
            advice=f"If they are micro-batches of one batch, call (loss / {n}).backward(){clipping}. "
            "If they are losses to be added, leave it.",
            **sums.span(),
        )
