"""SK308 attention-logit-growth.

What it reports:    An attention whose logits can have become so large that softmax sees one key only, and still grow.
Why it matters:     Such an attention passes hardly any gradient on, so it cannot correct itself, and a small change of its
                    weights moves all of its attention at once. In 16 bits the logits themselves become coarse. Runs that
                    diverged had logits in the thousands some time before the loss told.
How it decides:     The bound of an attention's logits (longest query times longest key, scaled) is above 100 at 3 records in a
                    row, and at least 1.2 times what it was 20 records before, or at the first of fewer. An error from 1,000
                    on. Recorded by stabkit.watch(..., forward=True), of what calls scaled_dot_product_attention or is a
                    torch.nn.MultiheadAttention; an attention by hand is not seen, and nothing of a compiled model.
Known false alarms: The bound can be several times the largest logit, where the longest query and the longest key point in
                    different directions; or where all keys share a large part, which softmax does not see.
What to try:        A lower rate: a third of it healed two of three runs. QK-norm and QK-clip bound the logits at any rate, and
                    do not make one bearable that is too high: QK-norm by itself healed none of the three.
References:         Wortsman et al. 2023, arXiv 2309.14322: runs that diverge pass 1,000 to 10,000. Kimi K2 2025, arXiv
                    2507.20534: above 1,000 in runs of 9 and 53 billion parameters with Muon; no spike with QK-clip at 100.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import Rule, Thresholds, found
from stabkit.analyzers.rates import highest_rates
from stabkit.analyzers.series import Flags
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["RULE", "AttentionLogitGrowth", "AttentionLogitGrowthThresholds"]

RULE = Rule(
    code="SK308",
    name="attention-logit-growth",
    severity=Severity.WARNING,
    requires=(("attention_logit_bound", "layer"),),
    min_steps=4,
)


@dataclass(frozen=True, kw_only=True)
class AttentionLogitGrowthThresholds(Thresholds):
    """When logits are too large, and grow."""

    large: float = 100.0
    """The bound from which it counts: where Kimi K2 cuts logits off."""
    fatal: float = 1000.0
    """The bound from which it is an error."""
    window: int = 20
    """Records over which it must have grown."""
    growth: float = 1.2
    """By this factor."""
    lasting: int = 3
    """Records in a row."""


class AttentionLogitGrowth:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: AttentionLogitGrowthThresholds | None = None) -> None:
        self.thresholds = thresholds or AttentionLogitGrowthThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding: the attentions that are first too large, the largest first."""
        limits, table = self.thresholds, run.table("attention_logit_bound")
        bounds = table.values
        certain = _in_a_row(self._growing(bounds), limits.lasting)
        certain[: RULE.min_steps - 1] = False
        if not certain.any():
            return
        row = int(np.argmax(certain.any(axis=1)))
        together = sorted(np.flatnonzero(certain[row]), key=lambda i: -bounds[row, i])
        worst, step = int(together[0]), int(table.steps[row])
        name, size = table.tensors[worst], float(bounds[row, worst])
        above = bounds[:, worst] > limits.large
        last = int(np.flatnonzero(above)[-1])
        peak = row + int(np.nanargmax(bounds[row:, worst]))
        good, rate = np.flatnonzero(~above[:row]), _lowered(run, step)
        yield found(
            RULE,
            severity=Severity.ERROR if bounds[peak, worst] > limits.fatal else RULE.severity,
            message=f"the logits of the attention behind {name} can be as large as {size:.3g} at step {step}, and grow",
            first_step=step,
            last_step=int(table.steps[last]),
            event_step=int(table.steps[peak]),
            last_good_step=int(table.steps[good[-1]]) if len(good) else 0,
            state=State.ONGOING if last == len(above) - 1 else State.RECOVERED,
            tensors=tuple(table.tensors[i] for i in together[:5]),
            evidence=(
                Evidence(metric="attention_logit_bound", observed=size, expected=limits.large, step=step, tensor=name),
                Evidence(metric="attention_logit_bound", observed=float(bounds[peak, worst]), step=int(table.steps[peak]),
                         tensor=name, note="its highest"),
            ),
            advice=f"{_lower(rate)}. To bound the logits at any rate, normalise queries and keys before their product, or "
            f"multiply {name} and the weight of the keys by sqrt({limits.large:g} / bound) after every step at which the "
            f"bound is above {limits.large:g}.",
            remedy={"peak_lr": rate} if rate > 0 else {},
        )  # fmt: skip

    def _growing(self, bounds: Array) -> Flags:
        """[records, layers]: too large, and larger than a window before."""
        limits = self.thresholds
        before = bounds[np.maximum(np.arange(len(bounds)) - limits.window, 0)]
        with np.errstate(invalid="ignore"):
            growing: Flags = (bounds > limits.large) & (bounds > limits.growth * before)
        return growing


def _lowered(run: RunLog, step: int) -> float:
    """A third of the highest rate up to a step, NaN where none is known."""
    if not run.has("lr", "group"):
        return math.nan
    return float(np.nanmax(highest_rates(run)[run.steps <= step])) / 3


def _lower(rate: float) -> str:
    return f"Lower the highest rate to a third, {rate:.2g}" if rate > 0 else "Lower the rate to a third"


def _in_a_row(flags: Flags, count: int) -> Flags:
    """Whether a record ends so many in a row that are True."""
    padded = np.vstack([np.zeros((count - 1, flags.shape[1]), dtype=bool), flags])
    return np.asarray(np.logical_and.reduce([padded[i : i + len(flags)] for i in range(count)]))
