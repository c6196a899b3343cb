"""SK204 stale-second-moment.

What it reports:    Gradients that have outgrown Adam's second moment: g^2 far above v-hat over a whole tensor.
Why it matters:     v is an average over about 1 / (1 - beta2) steps. When gradients grow faster than that, the denominator is
                    still the old one and the update is too large. In language-image training such steps came 1 to 8 steps
                    before loss spikes.
How it decides:     rms_ratio = sqrt(mean(g^2 / max(v-hat, eps^2))) of a matrix above min(2.3, 0.6 / sqrt(1 - beta2)) and above 1.5
                    times the largest value of its last 500 steps outside such events, in two tensors at once or in one for
                    two of three steps. The ratio cannot pass 1 / sqrt(1 - beta2): for beta2 up to 0.811 2.3 is out of reach and the
                    rule does not apply. Not before 1 / (1 - beta2) steps (at least 100), nor while the rate still rises: until
                    then v-hat averages over the very first gradients too, and healthy runs reach ratios of 3 to 7.
                    Embeddings are left out: a rare row's first gradient always looks so.
Known false alarms: About 0.5 per 1,000 steps in small healthy language models at high rates. It does not see the opposite
                    mechanism, a second moment that has decayed too far.
What to try:        A beta2 whose memory is as short as the change: 1 - 1/tau; or divide the tensor's rate by its rms_ratio, as
                    StableAdamW does.
References:         Wortsman et al. 2023, arXiv 2304.13013 (signal and 2.3); Shazeer and Stern 2018, arXiv 1804.04235 (update
                    clipping). The ceiling follows from v >= (1 - beta2) g^2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stabkit.analyzers.base import NotApplicable, Rule, found
from stabkit.analyzers.series import episodes, lasts
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
class StaleSecondMomentThresholds:
    """When a second moment is out of date."""

    ratio: float = 2.3
    """rms_ratio, where the ceiling allows it."""
    share_of_ceiling: float = 0.6
    """The limit as a share of 1 / sqrt(1 - beta2), where that is less."""
    over_history: float = 1.5
    """Over the largest recent value of the same tensor."""
    history: int = 500
    early: int = 100
    """Steps at the start that are not judged; 1 / (1 - beta2) where that is more."""
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
        beta2 = float(np.nanmax(run.table("beta2").values))
        ceiling = 1 / np.sqrt(1 - beta2)
        if ceiling <= limits.ratio:
            raise NotApplicable(f"at beta2 {beta2:g} the ratio cannot pass {ceiling:.2f}")
        limit = min(limits.ratio, limits.share_of_ceiling * ceiling)
        table = run.table("rms_ratio")
        early = max(limits.early, round(1 / (1 - beta2)))
        if table.steps[-1] < early:
            raise NotApplicable(f"{table.steps[-1]} steps; needs {early}, the memory of the second moment at beta2 {beta2:g}")
        judged = np.array([t.role == "matrix" for t in run.tensors])
        values = np.where(judged[None, :], table.values, np.nan)
        settled = (table.steps >= early) & _rate_has_peaked(run, table.steps)
        out = _above_history(values, limit, limits.over_history, limits.history) & settled[:, None]
        together = out.sum(axis=1) >= 2
        lasting = _two_of_three(out)
        for first, last in episodes(together | lasting.any(axis=1), limits.gap):
            row = np.where(out[first] | lasting[first], np.nan_to_num(values[first], nan=0.0), 0.0)
            order = [i for i in np.argsort(-row).tolist() if row[i] > 0]
            culprit, worst = table.tensors[order[0]], float(row[order[0]])
            yield found(
                RULE,
                message=f"gradients of {culprit} are {worst:.2g} times what its second moment expects",
                first_step=int(table.steps[first]),
                last_step=int(table.steps[last]),
                last_good_step=int(table.steps[first]) - 1,
                state=State.ONGOING if lasts(last, len(values)) else State.RECOVERED,
                tensors=tuple(table.tensors[i] for i in order[:5]),
                evidence=(
                    Evidence(metric="rms_ratio", observed=worst, expected=limit, step=int(table.steps[first]), tensor=culprit,
                             note=f"ceiling {ceiling:.1f} at beta2 {beta2:g}"),
                ),
                advice=f"Lower beta2 from {beta2:g} to {max(0.9, 1 - 5 * (1 - beta2)):.3g}; or keep it and divide the rate of "
                f"{culprit} by its rms_ratio where that is above 1 (StableAdamW).",
            )  # fmt: skip


def _rate_has_peaked(run: RunLog, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of each measured step, whether the rate no longer rises: it is below an earlier one, or was as high 20 steps before."""
    lr = np.nanmax(run.table("lr").values, axis=1)
    peak = np.maximum.accumulate(lr)
    before = np.concatenate([np.zeros(min(20, len(lr))), peak[:-20]])
    settled = (lr < peak) | (before >= peak)
    return settled[np.searchsorted(run.steps, steps).clip(0, len(lr) - 1)]


def _above_history(values: Array, limit: float, factor: float, history: int) -> NDArray[np.bool_]:
    """[steps, tensors]: above the limit and above `factor` times the largest of the last values that were not so themselves."""
    out = np.zeros(values.shape, dtype=bool)
    usual = np.where(np.isfinite(values), values, 0.0)
    for i in range(1, len(values)):
        with np.errstate(invalid="ignore"):
            out[i] = (values[i] > limit) & (values[i] > factor * usual[max(0, i - history) : i].max(axis=0))
        usual[i] = np.where(out[i], 0.0, usual[i])
    return out


def _two_of_three(out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a tensor is out now and was at least once in the two steps before."""
    earlier = np.zeros_like(out)
    earlier[1:] |= out[:-1]
    earlier[2:] |= out[:-2]
    return out & earlier
