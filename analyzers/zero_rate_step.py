"""SK104 zero-rate-step.

What it reports:    Steps taken at a rate of exactly zero.
Why it matters:     They cost a batch each and change nothing. The first step of many warmups is one: a factor of step /
                    warmup counted from 0. Adam's moments do move on, so the step is not quite as if it had not been.
How it decides:     The rate of every parameter group is 0.
Known false alarms: A frozen phase on purpose; the last step of a schedule that ends at zero.
What to try:        Count from 1: (step + 1) / warmup.
References:         PyTorch documentation, LambdaLR: the factor is called with 0 for the first step.
"""

from __future__ import annotations

from collections.abc import Iterator

from stabkit.analyzers.base import Rule, found
from stabkit.analyzers.series import episodes
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "ZeroRateStep"]

RULE = Rule(code="SK104", name="zero-rate-step", severity=Severity.INFO, requires=(("lr", "group"),))


class ZeroRateStep:
    """See the module's docstring."""

    rule = RULE

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding per run of such steps. Some logs count from 0."""
        zero = (run.table("lr").values == 0).all(axis=1)
        for first, last in episodes(zero):
            begin, end, count = int(run.steps[first]), int(run.steps[last]), last - first + 1
            yield found(
                RULE,
                message=f"step {begin} changed nothing: its rate is 0" if count == 1
                else f"{count} steps from {begin} to {end} changed nothing: their rate is 0",
                first_step=begin,
                last_step=end,
                state=State.ONGOING if last == len(zero) - 1 else State.RECOVERED,
                evidence=(Evidence(metric="lr", observed=0.0, step=begin),),
                advice=_advice(begin, count, first == 0 and begin <= 1),
            )  # fmt: skip


def _advice(begin: int, count: int, at_the_start: bool) -> str:
    if at_the_start:
        wasted = "the first batch is" if count == 1 else f"the first {count} batches are"
        return f"Count the warmup from 1, as in (step + 1) / warmup, so that {wasted} not wasted."
    return f"If the schedule ends here, end it one step later or at a small rate; if not, look at the schedule at step {begin}."
