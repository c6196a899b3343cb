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

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.gradient_spike import GradientSpike
from stabkit.analyzers.rates import beta2_of_groups, groups_of, highest_rates, rate_at, rows_of
from stabkit.analyzers.series import Flags, Indices, episodes, lasts
from stabkit.analyzers.sweep import Carry, swept
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows

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
        seen = swept(run, self._begin)
        if not seen.judged:
            raise NotApplicable(_why_not(run, limits))
        steps = seen.steps
        events = episodes(seen.told, limits.gap, steps)
        spikes = GradientSpike().spiking(run, [int(steps[first]) for first, _ in events])
        for (first, last), spiked in zip(events, spikes, strict=True):
            columns, ratios, limit, memories = (part[np.argsort(-seen.at[first][1], kind="stable")] for part in seen.at[first])
            names = tuple(run.tensors[i].name for i in columns)
            culprit, worst, step, memory = names[0], float(ratios[0]), int(steps[first]), float(memories[0])
            yield found(
                RULE,
                severity=Severity.INFO if spiked else Severity.WARNING,
                message=f"gradients of {culprit} are {worst:.2g} times what its second moment expects at step {step}"
                + ("; the gradient norm spiked there" if spiked else ""),
                first_step=step,
                last_step=int(steps[last]),
                last_good_step=step - 1,
                state=State.ONGOING if lasts(last, len(steps)) else State.RECOVERED,
                tensors=names[:5],
                evidence=(
                    Evidence(metric="rms_ratio", observed=worst, expected=float(limit[0]), step=step,
                             tensor=culprit, note=f"ceiling {1 / np.sqrt(1 - memory):.1f} at beta2 {memory:g}"),
                ),
                advice=_advice(culprit, memory, worst, rate_at(run, step)),
                remedy={"beta2": round(_shorter(memory), 3)} if _shorter(memory) < memory else {},
            )  # fmt: skip


    def sweeps(self) -> tuple[Callable[[RunLog], _Events]]:
        """What it reads of the tensors."""
        return (self._begin,)

    def _begin(self, run: RunLog) -> _Events:
        return _Events(run, self.thresholds)


class _Events:
    """The records in which ratios stand out. Of matrices only; limits are worked out per parameter group.

    Attributes:
        steps: int64 [n], the measured steps from 1 on.
        told: [n], at which of them there is an event.
        at: By row: the tensors that are out, their ratios, limits and beta2.
        judged: Whether there was anything to judge.
    """

    metrics = ("rms_ratio",)

    def __init__(self, run: RunLog, limits: StaleSecondMomentThresholds) -> None:
        self._limits = limits
        self._step0 = int(np.searchsorted(run.stream.tensor_steps, 1))
        self._columns: Indices = np.array([i for i, t in enumerate(run.tensors) if t.role == "matrix"], dtype=np.int64)
        self._groups = groups_of(run, "beta2")[self._columns]
        steps = self.steps = run.stream.tensor_steps[self._step0 :]
        rows = rows_of(run, steps)
        self._beta2 = beta2_of_groups(run, rows)
        ceiling = 1 / np.sqrt(1 - self._beta2)
        self._able: Flags = ceiling > limits.ratio
        self._settled = self._able & (_rate_has_settled(run, limits.settle)[rows] & (rows >= RULE.min_steps - 1))[:, None]
        self._settled &= (steps >= limits.early)[:, None]
        self._least = np.minimum(limits.ratio, limits.share_of_ceiling * ceiling)
        self._grown: Flags = steps[:, None] >= np.round(1 / (1 - self._beta2))
        self._usual, self._usual_early, self._out = Carry(limits.history), Carry(limits.early), Carry(2)
        self.told: Flags = np.zeros(len(steps), dtype=bool)
        self.at: dict[int, tuple[Indices, Array, Array, Array]] = {}
        self.judged = False

    def read(self, rows: Rows) -> None:
        """Take in the next block."""
        limits, skipped = self._limits, max(self._step0 - rows.begin, 0)
        values = np.take(rows.table("rms_ratio")[skipped:], self._columns, axis=1)
        begin = rows.begin + skipped - self._step0
        here = slice(begin, begin + len(values))
        known = np.isfinite(values)
        judged = self._settled[here][:, self._groups] & known
        self.judged = self.judged or bool(judged.any())
        usual = np.where(known & self._able[here][:, self._groups], values, 0.0)
        least, grown = (each[here][:, self._groups] for each in (self._least, self._grown))
        if not (usual > least).any():
            for carry in (self._usual, self._usual_early, self._out):
                carry(usual if carry is not self._out else np.zeros(usual.shape, dtype=bool))
            return
        limit = np.where(grown, least, np.maximum(least, limits.young))
        together = np.where(grown, least, np.maximum(least, limits.young_together))
        out = judged & _after(self._usual, usual, limit, limits.over_history, limits.history)
        many = judged & _after(self._usual_early, usual, together, limits.over_history, limits.early)
        most = many.sum(axis=1) >= max(2, len(self._columns) / 2)
        out |= many & most[:, None]
        limit = np.where(most[:, None], together, limit)
        lasting = _two_of_three(self._out(out))[-len(out) :]
        told = (out.sum(axis=1) >= 2) | lasting.any(axis=1)
        self.told[here] = told
        beta2 = self._beta2[here][:, self._groups]
        for row in np.flatnonzero(told).tolist():
            one = out[row]
            self.at[begin + row] = self._columns[one], values[row, one], limit[row, one], beta2[row, one]


def _after(past: Carry, usual: Array, limit: Array, factor: float, history: int) -> Flags:
    """`_above_history` of a block [rows, tensors] that comes after others, of which `past` keeps the last rows."""
    before = past.rows(usual)
    blind = np.full(before.shape, np.inf)
    joined = np.concatenate([before, usual])
    out = _above_history(joined, np.concatenate([blind, limit]), factor, history)
    past(np.where(out, 0.0, joined)[len(before) :])
    return out[len(before) :]


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


def _why_not(run: RunLog, limits: StaleSecondMomentThresholds) -> str:
    groups = groups_of(run, "beta2")[[tensor.role == "matrix" for tensor in run.tensors]]
    beta2 = beta2_of_groups(run, rows_of(run, run.stream.tensor_steps[run.stream.tensor_steps >= 1]))[:, np.unique(groups)]
    known = beta2[np.isfinite(beta2)]
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
