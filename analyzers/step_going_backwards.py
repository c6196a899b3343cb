"""SK508 step-going-backwards.

What it reports:    Steps taken at a negative rate: they go up the gradient, not down.
Why it matters:     Every such step undoes what a step at the positive rate would have done, and weight decay turns into
                    growth. torch refuses a negative rate when an optimizer is made, but not when a schedule writes one: a
                    linear decay of 1 - step / total is negative from its end on, and the loss climbs slowly at first.
How it decides:     The rate of a parameter group is below -1e-12 times the highest rate so far: what rounding leaves of a
                    schedule that ends at 0 is none.
Known false alarms: A group that is meant to ascend by a negative rate, as in some adversarial trainings; `maximize=True`
                    says so better. Not seen: a loss with the wrong sign, which looks like any other loss.
What to try:        Hold the schedule's factor at 0: max(0.0, 1 - step / total), or give it the true number of steps.
References:         PyTorch documentation, LambdaLR: the factor is what the function gives, of either sign; LinearLR and
                    PolynomialLR stop at their end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.rates import highest_rates
from stabkit.analyzers.series import episodes
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "StepGoingBackwards", "StepGoingBackwardsThresholds"]

RULE = Rule(code="SK508", name="step-going-backwards", severity=Severity.WARNING, requires=(("lr", "group"),))


@dataclass(frozen=True, kw_only=True)
class StepGoingBackwardsThresholds(Thresholds):
    """What is more than rounding."""

    rounding: float = 1e-12
    """Share of the highest rate so far: some 4,000 roundings of a double."""


class StepGoingBackwards:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: StepGoingBackwardsThresholds | None = None) -> None:
        self.thresholds = thresholds or StepGoingBackwardsThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding per run of such steps."""
        rates = run.table("lr").values
        lowest = np.fmin.reduce(rates, axis=1, initial=np.inf)
        highest = np.fmax.accumulate(np.nan_to_num(highest_rates(run), nan=0.0, posinf=0.0)).clip(0.0)
        backwards = lowest < -self.thresholds.rounding * highest
        for first, last in episodes(backwards):
            step, end, count = int(run.steps[first]), int(run.steps[last]), last - first + 1
            group = int(np.nanargmin(rates[first]))
            whose = "its rate" if rates.shape[1] == 1 else f"the rate of group {group}"
            before = float(rates[first - 1, group]) if first else None
            yield found(
                RULE,
                message=f"step {step} went up the gradient: {whose} is {lowest[first]:.3g}"
                + (f", and so did {count - 1} more up to step {end}" if count > 1 else ""),
                first_step=step,
                last_step=end,
                last_good_step=step - 1,
                state=State.ONGOING if last == len(backwards) - 1 else State.RECOVERED,
                evidence=(
                    Evidence(metric="lr", observed=float(lowest[first]), expected=before, step=step,
                             note="" if before is None else "the rate of the step before"),
                ),
                advice=f"Hold the schedule at 0 from step {step} on, as in max(0.0, 1 - step / total), or give it the number "
                "of steps of the whole run; continue from the last good step.",
            )  # fmt: skip
