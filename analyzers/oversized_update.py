"""SK102 oversized-update.

What it reports:    An update about as large as the weights it changes.
Why it matters:     A step of that size does not refine the weights, it replaces them; what was initialised carefully is gone.
How it decides:     In the first 10 steps, the update-to-weight ratio of a matrix above 0.5.
Known false alarms: None known yet.
What to try:        A lower rate, or a warmup.
References:         placeholder
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stabkit.analyzers.base import Rule, found
from stabkit.finding import Finding, Severity
from stabkit.runlog import RunLog

RULE = Rule(code="SK102", name="oversized-update", severity=Severity.WARNING, requires=(("update_ratio", "tensor"),))


class OversizedUpdate:
    rule = RULE

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        table = run.table("update_ratio")
        early = (table.steps >= 1) & (table.steps <= 10)
        for step, row in zip(table.steps[early], table.values[early]):
            if np.nanmax(row) > 0.5:
                culprit = table.tensors[int(np.nanargmax(row))]
                yield found(RULE, message=f"update of {np.nanmax(row):.2g} times the weights of {culprit}", first_step=int(step), last_step=int(step), tensors=(culprit,))
                return
