"""SK414 scheduler-flattens-group-rates.

What it reports:    Parameter groups that began with rates of their own are all given one and the same rate.
Why it matters:     Layer-wise decay, a low rate for a pretrained backbone, a high one for a new head: a schedule that writes
                    one number into every group throws them away without a word.
How it decides:     The groups' rates, all above 0, differ in every step so far; from one step to the next all become equal,
                    and stay so while the rate is raised above the lowest of them, or changes.
Known false alarms: Rates made equal on purpose, as when a backbone is unfrozen. Left alone are: a warmup from 0, a floor that
                    all groups reach (it stays where it is, below all of them), a frozen group with a rate of 0. Not seen:
                    rates that were equal before the first step, as after OneCycleLR with a single max_lr.
What to try:        Multiply each group's own rate: group["lr"] = group["initial_lr"] * factor.
References:         PyTorch documentation, LambdaLR: multiplies the initial rate of each group; OneCycleLR: max_lr may be a
                    list, one for each group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NoOccasion, Rule, Thresholds, found
from stabkit.analyzers.series import Flags
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["RULE", "SchedulerFlattensGroupRates", "SchedulerFlattensGroupRatesThresholds"]

RULE = Rule(
    code="SK414", name="scheduler-flattens-group-rates", severity=Severity.WARNING, requires=(("lr", "group"),), min_steps=4
)


@dataclass(frozen=True, kw_only=True)
class SchedulerFlattensGroupRatesThresholds(Thresholds):
    """What is flat, and for how long."""

    steps: int = 3
    """Steps with equal rates: one such step can be where two curves cross."""
    apart: float = 1.05
    """The highest rate over the lowest before: less may be rounding."""


class SchedulerFlattensGroupRates:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: SchedulerFlattensGroupRatesThresholds | None = None) -> None:
        self.thresholds = thresholds or SchedulerFlattensGroupRatesThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding."""
        rates = run.table("lr").values
        if rates.shape[1] < 2:
            raise NoOccasion("the optimizer has one parameter group")
        known = np.isfinite(rates).all(axis=1)
        with np.errstate(invalid="ignore"):
            low, high = np.where(known, [rates.min(axis=1), rates.max(axis=1)], np.nan)
            equal, apart = low == high, (low > 0) & (high >= self.thresholds.apart * low)
        if not known.any() or not apart[int(np.argmax(known))]:
            raise NoOccasion("the parameter groups begin with equal rates, or with a rate of 0")
        row = int(np.argmax(equal)) if equal.any() else 0
        if not row or not apart[row - 1] or not (apart | ~known)[:row].all():
            return
        fired = self._fired(equal, low, row)
        if fired is None:
            return
        step, own = int(run.steps[row]), [float(r) for r in rates[row - 1]]
        yield found(
            RULE,
            message=f"from step {step} on all {len(own)} parameter groups have the rate {low[row]:.3g}; before, they were "
            f"{high[row - 1] / low[row - 1]:.3g} times apart",
            first_step=int(run.steps[fired]),
            last_step=int(run.steps[-1]),
            event_step=step,
            last_good_step=step - 1,
            state=State.ONGOING if equal[-1] else State.RECOVERED,
            evidence=(
                Evidence(metric="lr", observed=min(own), step=int(run.steps[row - 1]), note="the lowest rate before"),
                Evidence(metric="lr", observed=max(own), step=int(run.steps[row - 1]), note="the highest rate before"),
                Evidence(metric="lr", observed=float(low[row]), step=step, note="of every group"),
            ),
            advice='Let the schedule multiply each group\'s own rate: group["lr"] = group["initial_lr"] * factor. Before, the '
            f"groups had {', '.join(f'{rate:.3g}' for rate in own[:4])}{', ...' if len(own) > 4 else ''}.",
        )  # fmt: skip

    def _fired(self, equal: Flags, low: Array, row: int) -> int | None:
        """The row at which it is certain that the equal rate is a schedule's and no floor."""
        end = row + int(np.argmin(equal[row:])) if not equal[row:].all() else len(equal)
        common = low[row:end]
        raised = (common > low[row - 1]) | ((common != common[0]) & (common > 0))
        sure = np.flatnonzero(raised)
        if not len(sure):
            return None
        fired = row + max(int(sure[0]), self.thresholds.steps - 1)
        return fired if fired < end else None
