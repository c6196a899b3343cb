"""SK103 first-step-at-peak-rate.

What it reports:    The first step is taken at a high rate, and only from the second on does the warmup act.
Why it matters:     A scheduler that writes the rate after `optimizer.step()` leaves the constructor's rate to the first
                    step: the one step for which the warmup was made is taken without it.
How it decides:     The first rate is at least twice the second, and the third is higher than the second: a ramp that
                    begins one step late.
Known false alarms: A schedule that deliberately takes one large step first.
What to try:        Set the rate before the first step: call the scheduler once before the loop, or construct the
                    optimizer with the warmup's first rate.
References:         PyTorch documentation, torch.optim, "How to adjust learning rate": torch's own schedulers set the
                    initial rate when they are constructed; hand-written ones often do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.rates import highest_rates
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "FirstStepAtPeakRate", "FirstStepAtPeakRateThresholds"]

RULE = Rule(
    code="SK103",
    name="first-step-at-peak-rate",
    severity=Severity.WARNING,
    requires=(("lr", "group"),),
    min_steps=3,
)


@dataclass(frozen=True, kw_only=True)
class FirstStepAtPeakRateThresholds(Thresholds):
    """What counts as one step too early."""

    factor: float = 2.0
    """First rate over second."""


class FirstStepAtPeakRate:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: FirstStepAtPeakRateThresholds | None = None) -> None:
        self.thresholds = thresholds or FirstStepAtPeakRateThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding, three steps into the run."""
        if run.steps[:3].tolist() != [1, 2, 3]:
            raise NotApplicable(f"the log begins with steps {', '.join(map(str, run.steps[:3]))}; needs 1, 2, 3")
        first, second, third = highest_rates(run)[:3].tolist()
        if not (first >= self.thresholds.factor * second and third > second):
            return
        yield found(
            RULE,
            message=f"step 1 was taken at rate {first:.3g}; the warmup acts from step 2 ({second:.3g}) on",
            first_step=3,
            last_step=3,
            event_step=1,
            last_good_step=0,
            state=State.RECOVERED,
            evidence=(
                Evidence(metric="lr", observed=first, expected=second, step=1, note="the rate of step 2"),
                Evidence(metric="lr", observed=third, step=3, note="the ramp"),
            ),
            advice=(
                f"Set the rate before the first step: construct the optimizer with lr={second:.3g}, or move the line that "
                "writes the rate above optimizer.step()."
            ),
        )
