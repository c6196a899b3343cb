"""SK411 scheduler-runs-past-its-end.

What it reports:    Training goes on after its schedule is over: a cosine that rises again, or a rate of 0 that stays.
Why it matters:     torch's CosineAnnealingLR and the cosines of many libraries do not stop at their end: the rate climbs back
                    to the peak and undoes what the decay has won. A linear decay stays at 0, and every further step costs a
                    batch and changes nothing. Most often the number of steps was counted wrongly (epochs for batches, one
                    process for many, micro-batches for steps).
How it decides:     A cosine: the rate fell to less than half its peak, and then took its last values again in reverse order,
                    one by one, from a bottom that is round, not pointed. At 0: the rate came down to exactly 0 in several
                    steps, and more training steps followed than an end can be off by.
Known false alarms: A cosine that is meant to swing back, such as CosineAnnealingLR with a short T_max used as a cycle; a
                    cycle that falls to 0 and rests there. Left alone are: triangular cycles (CyclicLR), warm restarts (they
                    jump), OneCycleLR, a cosine that rose as it falls (a cycle from its start on), a rate switched off at
                    once. Not seen: a cosine whose length is no whole number of steps, or with a flat stretch at its end.
What to try:        Give the schedule the number of optimizer steps of the whole run, or end the training with it.
References:         PyTorch documentation, CosineAnnealingLR: beyond T_max the formula goes on, periodically. Transformers,
                    get_linear_schedule_with_warmup: a factor of 0 from num_training_steps on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.rates import highest_rates
from stabkit.analyzers.schedules import changes_of
from stabkit.analyzers.start import planned_steps
from stabkit.finding import Evidence, Finding, Severity
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["RULE", "SchedulerRunsPastItsEnd", "SchedulerRunsPastItsEndThresholds"]

RULE = Rule(
    code="SK411",
    name="scheduler-runs-past-its-end",
    severity=Severity.WARNING,
    requires=(("lr", "group"),),
    min_steps=8,
)
SAME = 1e-3
"""Relative difference of two rises that are the same: the cosine of a long schedule is known to about this near its end."""


@dataclass(frozen=True, kw_only=True)
class SchedulerRunsPastItsEndThresholds(Thresholds):
    """What counts as past the end."""

    mirrored: int = 3
    """Values taken again in reverse: exactly the same number, three times running, is no chance."""
    roundness: float = 2.5
    """The second rise from the bottom over the first. A cosine rises as the square (4; 3 with a length of three), a triangle
    evenly (2)."""
    fallen: float = 0.5
    """The bottom over the peak."""
    steps: int = 20
    """Steps at a rate of 0: schedules that end a few steps early are common and harmless."""
    share: float = 0.01
    """The same, as a share of the steps up to the end."""
    last: float = 0.34
    """The last rate above 0 over the peak: a decay of at least three values, not a switch."""


class SchedulerRunsPastItsEnd:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: SchedulerRunsPastItsEndThresholds | None = None) -> None:
        self.thresholds = thresholds or SchedulerRunsPastItsEndThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding: where the cosine has turned, or the rate has stayed at 0."""
        rates = highest_rates(run)
        rows = changes_of(rates)
        values = rates[rows]
        turned, ended = self._turned(values), self._stays_at_zero(rates, run)
        if turned is not None:
            bottom, row = int(rows[turned]), int(rows[turned + self.thresholds.mirrored])
            end = int(run.steps[bottom])
            peak = float(values[_top(values, turned)])
            what = f"the cosine schedule was over at step {end} ({values[turned]:.3g}) and rises again towards {peak:.3g}"
        elif ended is not None:
            bottom, row = ended
            end = int(run.steps[bottom])
            what = f"the schedule reached a rate of 0 at step {end}, and training goes on: those steps change nothing"
        else:
            return
        step = int(run.steps[row])
        yield found(
            RULE,
            message=what,
            first_step=step,
            last_step=int(run.steps[-1]),
            event_step=end,
            last_good_step=end - 1,
            evidence=(
                Evidence(metric="lr", observed=float(rates[bottom]), step=end, note="the end of the schedule"),
                Evidence(metric="lr", observed=float(rates[row]), step=step, note="after it"),
            ),
            advice=_advice(run, end),
        )

    def _turned(self, values: Array) -> int | None:
        """The place of the first bottom from which a cosine rises as it fell, among the values of a schedule."""
        count = self.thresholds.mirrored
        inner = np.flatnonzero((values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])) + 1
        for bottom in map(int, inner):
            top = _top(values, bottom)
            if bottom - top < count or bottom + count >= len(values) or values[bottom] > self.thresholds.fallen * values[top]:
                continue
            fall = values[bottom - count : bottom][::-1] - values[bottom]
            rise = values[bottom + 1 : bottom + count + 1] - values[bottom]
            mirrored = bool(np.all(np.abs(rise - fall) <= SAME * fall))
            if mirrored and rise[1] >= self.thresholds.roundness * rise[0] and not _cycle(values, top, bottom):
                return bottom
        return None

    def _stays_at_zero(self, rates: Array, run: RunLog) -> tuple[int, int] | None:
        """(first row at a rate of 0, the row at which that has lasted) after a decay."""
        for zero in (np.flatnonzero((rates[1:] == 0) & (rates[:-1] > 0)) + 1).tolist():
            row = zero - 1 + max(self.thresholds.steps, math.ceil(self.thresholds.share * int(run.steps[zero])))
            if row >= len(rates) or rates[zero : row + 1].any():
                continue
            values = rates[:zero][changes_of(rates[:zero])]
            peak = _top(values, len(values) - 1)
            if len(values) - peak >= 3 and values[-1] <= self.thresholds.last * values[peak]:
                return zero, row
        return None


def _top(values: Array, place: int) -> int:
    """Where the fall that ends at a place began."""
    while place > 0 and values[place - 1] > values[place]:
        place -= 1
    return place


def _cycle(values: Array, top: int, bottom: int) -> bool:
    """Whether the values rose to the top as they fell from it: then the rise after the bottom is the next round."""
    reach = min(top, bottom - top)
    before, after = values[top - reach : top][::-1], values[top + 1 : top + reach + 1]
    return reach >= 3 and bool(np.all(np.abs(before - after) <= SAME * values[top]))


def _advice(run: RunLog, end: int) -> str:
    planned = planned_steps(run)
    whole = f"{planned}" if planned else f"at least {run.steps[-1]}"
    return (
        f"The schedule was made for {end} steps. Give it the number of optimizer steps of the whole run, {whole} (T_max, "
        "total_steps or num_training_steps), or end the training there."
    )
