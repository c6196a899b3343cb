"""SK419 coupled-weight-decay.

What it reports:    torch.optim.Adam with weight decay, which adds it to the gradient.
Why it matters:     Adam divides the gradient by its own size, and the decay with it: weights with large gradients are hardly
                    decayed, those with small ones much more, and the strength no longer follows from the number that was given.
How it decides:     The optimizer is torch's Adam, without decoupled_weight_decay, and a group has weight decay.
Known false alarms: A recipe that was tuned with L2 regularisation inside Adam and is to be reproduced.
What to try:        AdamW. Its weights shrink by lr * weight_decay a step, so 1 / (lr * weight_decay) is the number of steps the
                    decay looks back: choose it of the order of the run's length. Typical values are 0.01 to 0.1.
References:         Loshchilov and Hutter, Decoupled Weight Decay Regularization (arXiv 1711.05101). Wang and Aitchison, How to
                    set AdamW's weight decay as you scale model and dataset size (arXiv 2405.13698).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stabkit.analyzers.base import NotApplicable, Rule, found
from stabkit.analyzers.rates import highest_rates
from stabkit.analyzers.series import known_max
from stabkit.analyzers.start import planned_steps
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "CoupledWeightDecay"]

RULE = Rule(
    code="SK419", name="coupled-weight-decay", severity=Severity.INFO, requires=(("weight_decay", "group"), ("lr", "group"))
)


class CoupledWeightDecay:
    """See the module's docstring."""

    rule = RULE

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding, at the first step with weight decay."""
        stream = run.stream
        if not stream.optimizer:
            raise NotApplicable("the log does not name the optimizer")
        if stream.optimizer not in ("Adam", "AdamW") or "decoupled_weight_decay" not in stream.options:
            raise NotApplicable(f"how {stream.optimizer} decays is not known")
        decay = known_max(run.table("weight_decay").values, axis=1)
        rows = np.flatnonzero(decay > 0)
        if stream.optimizer != "Adam" or stream.options["decoupled_weight_decay"] or not len(rows):
            return
        row = int(rows[0])
        step, given = int(run.steps[row]), float(decay[row])
        yield found(
            RULE,
            message=f"Adam decays by {given:.3g} through the gradient from step {step} on: how much depends on its size",
            first_step=step,
            last_step=int(run.steps[rows[-1]]),
            evidence=(Evidence(metric="weight_decay", observed=given, expected=0.0, step=step),),
            advice=_advice(float(highest_rates(run)[row]), planned_steps(run)),
        )  # fmt: skip


def _advice(rate: float, planned: int | None) -> str:
    advice = "Use torch.optim.AdamW, whose decay is lr * weight_decay a step whatever the gradient; start from 0.01 to 0.1"
    if planned and rate > 0:
        return f"{advice}. At a rate of {rate:.3g}, {1 / (rate * planned):.2g} looks back over the {planned} steps of the run."
    return f"{advice}, not from the number given to Adam."
