"""SK204 stale-second-moment.

What it reports:    Gradients that have outgrown Adam's second moment: g^2 far above v-hat over a whole tensor.
Why it matters:     v is an average over about 1 / (1 - beta2) steps. When gradients grow faster than that, the
                    denominator is still the old one and the update is too large. In language-image training such steps
                    came 1 to 8 steps before loss spikes.
How it decides:     rms_ratio = sqrt(mean(g^2 / max(v-hat, eps^2))) of a matrix above min(2.3, 0.6 / sqrt(1 - beta2)) and
                    above 1.5 times the largest value of its last 500 records outside such events, in two tensors at once
                    or in one for two of three records. The ratio cannot pass 1 / sqrt(1 - beta2): for beta2 up to 0.811
                    2.3 is out of reach and the rule does not apply. Not before step 100, nor while the rate still rises
                    or reached its peak less than 20 steps ago. Up to step 1 / (1 - beta2) v-hat averages over the very first
                    gradients too, healthy runs reach ratios of 3 to 7, and the limit is 8, or 5 where half of all matrices
                    pass it at once. Embeddings are left out: a rare row's first gradient always looks so. Information
                    only where the gradient norm of that step is a spike: then SK203 warns of it, and this says what
                    the spike meets.
Known false alarms: About 0.5 per 1,000 steps in small healthy language models at high rates. It does not see the opposite
                    mechanism, a second moment that has decayed too far.
What to try:        A second moment with a memory five times shorter (1 - beta2 five times as large, beta2 not below 0.9);
                    or divide the tensor's rate by its rms_ratio where that is above 1, as StableAdamW does.
References:         Wortsman et al. 2023, arXiv 2304.13013 (signal and 2.3); Shazeer and Stern 2018, arXiv 1804.04235
                    (update clipping). The ceiling follows from v-hat >= (1 - beta2) g^2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.gradient_spike import GradientSpike
from stabkit.analyzers.rates import beta2_of_tensors, highest_rates, rate_at, rows_of
from stabkit.analyzers.series import Flags, episodes, lasts
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog

__all__ = ["RULE", "StaleSecondMoment", "StaleSecondMomentThresholds"]

RULE = Rule(
    code="SK204",
    name="stale-second-moment",
    severity=Severity.WARNING,
    requires=(("lr", "group"), ("beta2", "group"), ("rms_ratio", "tensor")),
    min_steps=100,
)


@dataclass(frozen=True, kw_only=True)
class StaleSecondMomentThresholds(Thresholds):
    """When a second moment is out of date."""

    ratio: float = 2.3
    """rms_ratio, where the ceiling allows it."""
    share_of_ceiling: float = 0.6
    """The limit as a share of 1 / sqrt(1 - beta2), where that is less."""
    over_history: float = 1.5
    """Over the largest recent value of the same tensor."""
    history: int = 500
    """Records of the tensor that are recent."""
    young: float = 8.0
    """rms_ratio up to step 1 / (1 - beta2), where v-hat still holds the very first gradients: healthy runs reach 7."""
    young_together: float = 5.0
    """The same where at least half of all matrices, and two, are above it and the last `early` records. In healthy runs half of
    them together never passed 4.6."""
    early: int = 100
    """Steps at the start that are not judged."""
    settle: int = 20
    """Steps for which the rate must not have risen."""
    gap: int = 30
    """Steps between two events up to which they are one."""


class StaleSecondMoment:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: StaleSecondMomentThresholds | None = None) -> None:
        self.thresholds = thresholds or StaleSecondMomentThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding per event."""
        limits = self.thresholds
        table = run.table("rms_ratio")
        steps, values = table.steps[table.steps >= 1], table.values[table.steps >= 1]
        beta2 = beta2_of_tensors(run, rows_of(run, steps))
        ceiling = 1 / np.sqrt(1 - beta2)
        limit = np.minimum(limits.ratio, limits.share_of_ceiling * ceiling)
        judged = np.array([t.role == "matrix" for t in run.tensors], dtype=bool) & (ceiling > limits.ratio)
        judged &= (steps >= limits.early)[:, None] & np.isfinite(values)
        grown = steps[:, None] >= np.round(1 / (1 - beta2))
        together = np.where(grown, limit, np.maximum(limit, limits.young_together))
        limit = np.where(grown, limit, np.maximum(limit, limits.young))
        rows = rows_of(run, steps)
        judged &= (_rate_has_settled(run, limits.settle)[rows] & (rows >= RULE.min_steps - 1))[:, None]
        if not judged.any():
            raise NotApplicable(_why_not(run, beta2, limits))
        usual = np.where(np.isfinite(values) & (ceiling > limits.ratio), values, 0.0)
        out = judged & _above_history(usual, limit, limits.over_history, limits.history)
        many = judged & _above_history(usual, together, limits.over_history, limits.early)
        most = many.sum(axis=1) >= max(2, sum(t.role == "matrix" for t in run.tensors) / 2)
        out |= many & most[:, None]
        limit = np.where(most[:, None], together, limit)
        lasting = _two_of_three(out)
        events = episodes((out.sum(axis=1) >= 2) | lasting.any(axis=1), limits.gap, steps)
        spikes = GradientSpike().spiking(run, [int(steps[first]) for first, _ in events])
        for (first, last), spiked in zip(events, spikes, strict=True):
            order = [i for i in np.argsort(-values[first], kind="stable").tolist() if out[first, i]]
            culprit, worst, step = table.tensors[order[0]], float(values[first, order[0]]), int(steps[first])
            memory = float(beta2[first, order[0]])
            yield found(
                RULE,
                severity=Severity.INFO if spiked else Severity.WARNING,
                message=f"gradients of {culprit} are {worst:.2g} times what its second moment expects at step {step}"
                + ("; the gradient norm spiked there" if spiked else ""),
                first_step=step,
                last_step=int(steps[last]),
                last_good_step=step - 1,
                state=State.ONGOING if lasts(last, len(values)) else State.RECOVERED,
                tensors=tuple(table.tensors[i] for i in order[:5]),
                evidence=(
                    Evidence(metric="rms_ratio", observed=worst, expected=float(limit[first, order[0]]), step=step,
                             tensor=culprit, note=f"ceiling {1 / np.sqrt(1 - memory):.1f} at beta2 {memory:g}"),
                ),
                advice=_advice(culprit, memory, worst, rate_at(run, step)),
                remedy={"beta2": round(_shorter(memory), 3)} if _shorter(memory) < memory else {},
            )  # fmt: skip


def _rate_has_settled(run: RunLog, settle: int) -> Flags:
    """Of each step, whether the rate no longer rises: it is below an earlier one, or was as high `settle` steps before."""
    lr = highest_rates(run)
    peak = np.fmax.accumulate(lr)
    before = np.concatenate([np.zeros(min(settle, len(lr))), peak[:-settle]])
    settled: Flags = (lr < peak) | (before >= peak)
    return settled


def _above_history(values: Array, limit: Array, factor: float, history: int) -> Flags:
    """[steps, tensors]: above the limit and above `factor` times the largest of the last values that were not so themselves."""
    out, usual = np.zeros(values.shape, dtype=bool), values.copy()
    candidates = values > limit
    for i in np.flatnonzero(candidates[1:].any(axis=1)) + 1:
        out[i] = candidates[i] & (values[i] > factor * usual[max(0, i - history) : i].max(axis=0))
        usual[i] = np.where(out[i], 0.0, usual[i])
    return out


def _two_of_three(out: Flags) -> Flags:
    """Where a tensor is out now and was at least once in the two records before."""
    earlier = np.zeros_like(out)
    earlier[1:] |= out[:-1]
    earlier[2:] |= out[:-2]
    return out & earlier


def _why_not(run: RunLog, beta2: Array, limits: StaleSecondMomentThresholds) -> str:
    matrices = [t.role == "matrix" for t in run.tensors]
    known = beta2[:, matrices][np.isfinite(beta2[:, matrices])]
    if not len(known):
        return "no matrix has a known beta2"
    largest = float(known.max())
    if 1 / np.sqrt(1 - largest) <= limits.ratio:
        return f"at beta2 {largest:g} the ratio cannot pass {1 / np.sqrt(1 - largest):.2f}"
    if run.steps[-1] < limits.early:
        return f"{run.steps[-1]} steps; needs {limits.early}"
    return "no step could be judged: the rate has risen all along, or no ratio was measured since"


def _advice(culprit: str, beta2: float, ratio: float, lr: float) -> str:
    shorter = _shorter(beta2)
    rate = f" ({lr / ratio:.2g} instead of {lr:.2g} here)" if np.isfinite(lr) else ""
    divide = f"ivide the rate of {culprit} by its rms_ratio where that is above 1{rate}, as StableAdamW does."
    return f"Lower beta2 from {beta2:g} to {shorter:.3g}; or keep it and d{divide}" if shorter < beta2 else f"D{divide}"


def _shorter(beta2: float) -> float:
    """The beta2 of a fifth of the memory, not below 0.9."""
    return max(0.9, 1 - 5 * (1 - beta2))
