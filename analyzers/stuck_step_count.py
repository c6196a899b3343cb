"""SK418 stuck-step-count.

What it reports:    Steps are taken, but the optimizer's own count of them stands still.
Why it matters:     Adam corrects its moments by the number of steps. A count that stays at 1 corrects them for ever as if they
                    were new: the first moment ten times, the second a thousand times too large. A state that is made anew at
                    every step has no memory at all: Adam becomes the sign of one batch's gradient.
How it decides:     The count is the same after several steps in a row that had a gradient and were not skipped.
Known false alarms: An optimizer that keeps a count called "step" in its state and makes no use of it. Not seen: a state that is
                    thrown away between two steps (every step then begins another attempt, as `stabkit info` shows), optimizers
                    without a count, a count on a device.
What to try:        Increase state["step"] in every step of the optimizer; make the state only where it is missing.
References:         Kingma and Ba, Adam: A Method for Stochastic Optimization (arXiv 1412.6980), section 3, bias correction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.series import episodes
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "StuckStepCount", "StuckStepCountThresholds"]

RULE = Rule(
    code="SK418",
    name="stuck-step-count",
    severity=Severity.ERROR,
    requires=(("applied_steps", "step"), ("skipped", "step"), ("backward_count", "step")),
    min_steps=2,
)


@dataclass(frozen=True, kw_only=True)
class StuckStepCountThresholds(Thresholds):
    """When a count is stuck."""

    steps: int = 5
    """Steps in a row that it did not count: a loss scaler that is not torch's may skip a few unseen."""


class StuckStepCount:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: StuckStepCountThresholds | None = None) -> None:
        self.thresholds = thresholds or StuckStepCountThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding."""
        count = run.series("applied_steps").values
        taken = (run.series("skipped").values == 0) & (run.series("backward_count").values > 0)
        stuck = np.zeros(len(count), dtype=bool)
        stuck[1:] = taken[1:] & (count[1:] == count[:-1]) & (np.diff(run.steps) == 1)
        for first, last in episodes(stuck):
            if last - first + 1 < self.thresholds.steps:
                continue
            fired = first + self.thresholds.steps - 1
            begin, step, held = int(run.steps[first]), int(run.steps[fired]), int(count[first])
            yield found(
                RULE,
                message=f"the optimizer's own step count stays at {held} from step {begin - 1} on, though steps are taken",
                first_step=step,
                last_step=int(run.steps[last]),
                event_step=begin,
                last_good_step=begin - 1,
                state=State.ONGOING if last == len(stuck) - 1 else State.RECOVERED,
                evidence=(
                    Evidence(metric="applied_steps", observed=float(held), expected=float(held + fired - first + 1), step=step),
                ),
                advice='Increase state["step"] by 1 in every step of the optimizer, and make the state of a parameter only '
                f"where it has none: `if not state:`. From step {begin} on the bias correction was wrong.",
            )  # fmt: skip
            return
