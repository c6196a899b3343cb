"""SK406 missing-zero-grad.

What it reports:    Gradients that are never zeroed: each step adds to those of all steps before it.
Why it matters:     The optimizer follows the sum of the whole past. Its norm grows, the direction hardly changes; what looks
                    like momentum cannot turn, and the loss rises again where it should settle.
How it decides:     At 3 steps in a row the first backward found gradients, not all zero, exactly as the step before had left
                    them: the same tensors, unwritten since.
Known false alarms: A sum over steps on purpose. On a device gradients are not read: there zeroing through `p.grad.data`, which
                    leaves no trace, looks like none.
What to try:        `optimizer.zero_grad()` after `optimizer.step()`.
References:         PyTorch documentation, "Zeroing out gradients in PyTorch": gradients accumulate until they are zeroed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.habit import habit, need_backward
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "MissingZeroGrad", "MissingZeroGradThresholds"]

RULE = Rule(
    code="SK406",
    name="missing-zero-grad",
    severity=Severity.WARNING,
    requires=(("kept_gradients", "step"), ("backward_count", "step")),
    min_steps=4,
)


@dataclass(frozen=True, kw_only=True)
class MissingZeroGradThresholds(Thresholds):
    """When it is a habit."""

    steps: int = 3
    """Steps in a row that found the gradients of the one before: once may be meant."""


class MissingZeroGrad:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: MissingZeroGradThresholds | None = None) -> None:
        self.thresholds = thresholds or MissingZeroGradThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding."""
        need_backward(run)
        never = habit(run, run.series("kept_gradients").values > 0, self.thresholds.steps)
        if never is None:
            return
        yield found(
            RULE,
            message=f"step {never.told} added to the gradients of the step before, as every step since {never.begin}: "
            "they are never zeroed",
            evidence=(Evidence(metric="kept_gradients", observed=1.0, expected=0.0, step=never.told),),
            advice="Call optimizer.zero_grad() after optimizer.step(), or before the first backward() of each step; "
            f"go back to a checkpoint from step {never.begin - 1} or before.",
            **never.span(),
        )
