"""SK402 step-outside-scaler.

What it reports:    A loss that was scaled, and an optimizer that was stepped without the scaler.
Why it matters:     `scaler.step` does two things: it takes the scale off the gradients and passes a step over whose
                    gradients overflowed. `optimizer.step` does neither. Gradients 65,536 times too large make SGD explode;
                    Adam hides them, but not from clipping, eps and weight decay. And the first overflow, which the scaler
                    provokes on purpose, goes into the weights.
How it decides:     The optimizer was called outside `GradScaler.step` after a backward of a scaled loss. An error at the
                    first step whose gradients still carried the scale, or took an infinity into the weights; a warning
                    where `unscale_` had been called at 3 steps in a row, and nothing has overflowed yet.
Known false alarms: After `unscale_`: a loop that looks for infinities itself before it steps. With the scale on: unscaling
                    by hand through `p.grad.data`, which leaves no trace; any other writing by hand is seen, and not judged.
What to try:        `scaler.step(optimizer)` and `scaler.update()` in place of `optimizer.step()`.
References:         PyTorch documentation, torch.amp.GradScaler: "step ... internally invokes unscale_ ... if no inf/NaN
                    gradients are found, invokes optimizer.step()".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.broken import BrokenGradients
from stabkit.analyzers.habit import Habit, habit
from stabkit.analyzers.series import Flags
from stabkit.analyzers.sweep import swept
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "StepOutsideScaler", "StepOutsideScalerThresholds"]

RULE = Rule(
    code="SK402",
    name="step-outside-scaler",
    severity=Severity.ERROR,
    requires=(("loss_scale", "step"), ("step_outside_scaler", "step")),
)


@dataclass(frozen=True, kw_only=True)
class StepOutsideScalerThresholds(Thresholds):
    """When a step without its check is a mistake."""

    steps: int = 3
    """Such steps in a row, after `unscale_`: one alone may have been looked at by hand."""


class StepOutsideScaler:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: StepOutsideScalerThresholds | None = None) -> None:
        self.thresholds = thresholds or StepOutsideScalerThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding: the first that was scaled or overflowed, or the habit, whichever is told first."""
        outside = run.series("step_outside_scaler").values
        harmed = habit(run, (outside == 2) | ((outside == 1) & _overflowed(run)), 1)
        unchecked = habit(run, (outside == 1) | (outside == 2), self.thresholds.steps)
        told = [each for each in (harmed, unchecked) if each is not None]
        if told:
            yield _finding(run, min(told, key=lambda each: each.told), harmed)


def _finding(run: RunLog, earliest: Habit, harmed: Habit | None) -> Finding:
    step = (harmed or earliest).begin
    at = int(np.flatnonzero(run.steps == step)[0])
    scale, level = run.series("loss_scale").values[at], run.series("step_outside_scaler").values[at]
    if level == 2:
        message = f"step {step} was made by optimizer.step() of gradients still multiplied by the loss scale {scale:.6g}"
    elif harmed:
        message = f"step {step} took an overflow at loss scale {scale:.6g} into the weights; scaler.step() would skip it"
    else:
        message = f"steps from {step} on were made by optimizer.step() at loss scale {scale:.6g}: none is skipped on overflow"
    advice = "Replace optimizer.step() by scaler.step(optimizer), followed by scaler.update()."
    if not harmed:
        advice += " If your loop looks for infinities itself before it steps, leave it."
    return found(
        RULE,
        severity=Severity.ERROR if harmed else Severity.WARNING,
        message=message,
        event_step=harmed.begin if harmed else None,
        evidence=(
            Evidence(metric="step_outside_scaler", observed=level, expected=0.0, step=step,
                     note="scale still on" if level == 2 else "unscaled, not checked"),
            Evidence(metric="loss_scale", observed=scale, step=step),
        ),
        advice=advice,
        **earliest.span(),
    )  # fmt: skip


def _overflowed(run: RunLog) -> Flags:
    """[n] whether the gradients the optimizer used are known to have held a NaN or an infinity."""
    flags = np.zeros(len(run.steps), dtype=bool)
    if run.has("grad_nonfinite", "tensor"):
        flags = np.isin(run.steps, run.stream.tensor_steps[swept(run, BrokenGradients).rows])
    return flags
