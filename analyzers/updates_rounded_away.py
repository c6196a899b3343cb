"""SK306 updates-rounded-away.

What it reports:    Weights of 16 bits that keep their bits, step after step, because the updates are too small for them.
Why it matters:     A bfloat16 has 8 significant bits: an update below 1/512 of a weight is lost when it is added, every time,
                    and a healthy update is about 1/1000. The loss still falls a little, by the few weights that move, and
                    then stays where it is.
How it decides:     Of the elements that had a gradient, fewer than a fifth changed a bit, in the median of 20 measured steps,
                    or fewer than a tenth in that of 4: the share of thousands of elements is no matter of chance. Steps
                    below a tenth of the highest rate so far are not judged, nor are those of a rising rate, with one
                    exception: where it is known how many steps the run is to have, a warmup is taken to rise as it does for
                    a tenth of them. The share grows at most as the rate does, and if that leaves it below a fifth, in the
                    median of 10 steps, the end of the warmup is not waited for.
Known false alarms: A warmup over more than a tenth of the run, of a rate far above what it rises to in that. Else none known:
                    torch's Adam and AdamW round to the nearest. Optimizers that round stochastically, or carry
                    what was rounded off (Kahan), lose nothing although few bits change: they are not judged, nor is any other
                    whose formula is not known. Not seen: gains of norms, which stay at 1 below a rate of 1/512 but are few.
What to try:        Weights of 32 bits with torch.autocast, or an optimizer that keeps 32-bit copies, rounds stochastically, or
                    carries the rest; a higher rate only where it is too low anyway.
References:         Zamirai et al., Revisiting BFloat16 Training (arXiv 2010.06192): rounding to the nearest in the update of
                    weights is what costs accuracy; stochastic rounding or Kahan summation win it back. Micikevicius et al.,
                    Mixed Precision Training (arXiv 1710.03740), section 3.1: 32-bit master copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.analyzers.base import NoOccasion, NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.rates import highest_rates, rows_of
from stabkit.analyzers.series import Flags, Indices
from stabkit.analyzers.start import planned_steps
from stabkit.analyzers.sweep import swept
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows

__all__ = ["RULE", "UpdatesRoundedAway", "UpdatesRoundedAwayThresholds"]

RULE = Rule(
    code="SK306",
    name="updates-rounded-away",
    severity=Severity.WARNING,
    requires=(("unchanged_fraction", "tensor"), ("update_norm", "tensor"), ("weight_norm", "tensor"), ("lr", "group")),
    min_steps=4,
)
HALF_SURVIVE = {"bfloat16": 2**-8.5, "float16": 2**-11.5}
"""Update over weight at which half of the updates survive: half the spacing of two numbers is 2^-9 to 2^-8 of them (2^-12 to
2^-11), so this is its middle. Measured at the rate it gives, in bfloat16: 47 % survive."""


@dataclass(frozen=True, kw_only=True)
class UpdatesRoundedAwayThresholds(Thresholds):
    """When too much is lost."""

    changed: float = 0.2
    """Share of the elements with a gradient that changed: below this four updates of five are lost."""
    window: int = 20
    """Measured steps whose median is judged."""
    few_changed: float = 0.1
    """Share below which nine updates of ten are lost."""
    few: int = 4
    """Measured steps that are enough to say so."""
    rising: int = 10
    """Measured steps of a warmup that are enough."""
    warmup: float = 0.1
    """Share of the run up to which a warmup is expected."""
    rate: float = 0.1
    """Share of the highest rate so far below which a step belongs to the end of a schedule."""


class UpdatesRoundedAway:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: UpdatesRoundedAwayThresholds | None = None) -> None:
        self.thresholds = thresholds or UpdatesRoundedAwayThresholds()

    def sweeps(self) -> tuple[type[_Lost]]:
        """What it reads of the tensors."""
        return (_Lost,)

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding: where the median first falls below the limit."""
        coarse = np.array([t.dtype in HALF_SURVIVE for t in run.tensors], dtype=bool)
        if not coarse.any():
            raise NoOccasion("the optimizer's weights are not of 16 bits")
        steps = run.stream.tensor_steps
        rates = highest_rates(run)[rows_of(run, steps)]
        rows, changed = self._judged(swept(run, _Lost), rates)
        early = self._in_warmup(steps[rows], changed, rates[rows], planned_steps(run))
        told = self._first(rows, changed, rates, early)
        if told is None:
            return
        at, window, low = told
        span = rows[at - window + 1 : at + 1]
        step, share, rate = int(steps[rows[at]]), float(np.median(changed[at - window + 1 : at + 1])), rates[rows[at]]
        near = Rows(run, int(span[0]), int(span[-1]) + 1)
        names = _most_lost(run, near.table("unchanged_fraction")[span - near.begin], coarse)
        needed = float(rate) * self._short_of(run, near, span - near.begin)
        last = int(steps[rows[np.flatnonzero(low)[-1]]])
        yield found(
            RULE,
            message=f"{1 - share:.0%} of the updates at rate {rate:.3g} are rounded away in the steps up to {step}: the "
            f"weights are {run.tensors[int(np.argmax(coarse))].dtype}",
            first_step=step,
            last_step=last,
            event_step=int(steps[span[0]]),
            last_good_step=int(steps[span[0]]) - 1,
            state=State.ONGOING if low[-1] else State.RECOVERED,
            tensors=names,
            evidence=(
                Evidence(metric="unchanged_fraction", observed=1 - share, expected=1 - self.thresholds.changed, step=step,
                         note=f"median of {window} steps, all 16-bit tensors together"),
                Evidence(metric="lr", observed=float(rate), expected=needed if needed > rate else None, step=step,
                         note="half would survive at the rate expected"),
            ),
            advice="Keep the weights in float32 and compute in 16 bits with torch.autocast, or use an optimizer with float32 "
            "copies or stochastic rounding."
            + (f" As it is, half of the updates would survive from a rate of {needed:.2g} on." if needed > rate else ""),
            remedy={"master_weights": 1.0},
        )  # fmt: skip

    def _first(self, rows: Indices, changed: Array, rates: Array, early: Flags) -> tuple[int, int, Flags] | None:
        """The first of the judged rows that says so, the length of the window that does, and all the rows that do.

        Args:
            rows: [n] judged.
            changed: [n] share that changed in each.
            rates: Of all rows.
            early: [n] where a warmup tells enough.

        Raises:
            NotApplicable: too few rows, or none at which the rate had not risen.
        """
        limits = self.thresholds
        if len(rows) < limits.few:
            raise NotApplicable(f"{len(rows)} steps were measured at a rate worth judging; needs {limits.few}")
        low, steady = np.zeros((3, len(rows)), dtype=bool), np.zeros(len(rows), dtype=bool)
        low[2] = early
        for told, window, share in ((low[0], limits.few, limits.few_changed), (low[1], limits.window, limits.changed)):
            if len(rows) >= window:
                falling = rates[rows[window - 1 :]] <= rates[rows[: 1 - window]]
                told[window - 1 :] = falling & (np.median(sliding_window_view(changed, window), axis=1) < share)
                steady[window - 1 :] |= falling
        if not (steady | early).any():
            raise NotApplicable("the rate has risen all along")
        if not low.any():
            return None
        any_of: Flags = np.asarray(low.any(axis=0))
        at = int(np.argmax(any_of))
        return at, limits.window if low[1, at] else limits.few if low[0, at] else limits.rising, any_of

    def _in_warmup(self, steps: Indices, changed: Array, rates: Array, planned: int | None) -> Flags:
        """Where a rate that has risen all along leaves too little even if it goes on rising for a tenth of the planned run.

        An update survives in the weights that are small beside it, and weights lie no denser away from zero than around it: one
        that is twice as long reaches at most twice as many.
        """
        early, window = np.zeros(len(steps), dtype=bool), self.thresholds.rising
        if planned is None or len(steps) < window:
            return early
        slope = (rates[1:] - rates[0]) / (steps[1:] - steps[0])
        end = np.append(rates[0], rates[1:] + slope * np.maximum(self.thresholds.warmup * planned - steps[1:], 0))
        rising = (rates > rates[0]) & (np.maximum.accumulate(rates) == rates)
        at_end = np.median(sliding_window_view(changed / rates, window), axis=1) * end[window - 1 :]
        early[window - 1 :] = rising[window - 1 :] & (at_end < self.thresholds.changed)
        return early

    def _judged(self, seen: _Lost, rates: Array) -> tuple[Indices, Array]:
        """Rows in which 16-bit weights were compared at a rate worth judging, and the share that changed in each."""
        level = self.thresholds.rate * np.fmax.accumulate(rates)
        rows: Indices = np.flatnonzero((seen.total > 0) & (rates > 0) & (rates >= level))
        return rows, 1 - seen.lost[rows] / seen.total[rows]

    def _short_of(self, run: RunLog, near: Rows, rows: Indices) -> float:
        """By what factor the rate falls short of one at which half of the updates survive."""
        coarse = [tensor.dtype in HALF_SURVIVE for tensor in run.tensors]
        update, weight = (near.table(name)[rows][:, coarse] for name in ("update_norm", "weight_norm"))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.sqrt(np.nansum(update**2, axis=1) / np.nansum(weight**2, axis=1))
        limit = max(HALF_SURVIVE[t.dtype] for t in run.tensors if t.dtype in HALF_SURVIVE)
        return limit / float(np.nanmedian(ratio)) if np.any(ratio > 0) else float("nan")


class _Lost:
    """What became of the updates of 16-bit weights.

    Attributes:
        total: [n], elements that were compared at each measured step.
        lost: [n], those that did not change.
    """

    metrics = ("unchanged_fraction",)

    def __init__(self, run: RunLog) -> None:
        self._numel = np.array([t.numel if t.dtype in HALF_SURVIVE else 0.0 for t in run.tensors])
        self.total, self.lost = np.zeros((2, len(run.stream.tensor_steps)))

    def read(self, rows: Rows) -> None:
        """Take in the next block."""
        here, unchanged = slice(rows.begin, rows.begin + len(rows)), rows.table("unchanged_fraction")
        known = np.isfinite(unchanged) * self._numel
        self.total[here], self.lost[here] = known.sum(axis=1), (np.nan_to_num(unchanged) * known).sum(axis=1)


def _most_lost(run: RunLog, unchanged: Array, coarse: Flags) -> tuple[str, ...]:
    """The 16-bit tensors, those that lost most first."""
    lost = np.where(coarse, np.nan_to_num(np.median(unchanged, axis=0)), -1.0)
    return tuple(run.tensors[i].name for i in np.argsort(-lost, kind="stable") if coarse[i])
