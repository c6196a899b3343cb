"""SK203 gradient-spike.

What it reports:    A global gradient norm far above its own recent level, before clipping.
Why it matters:     Gradient spikes often come some steps before loss spikes; unclipped, one can undo hundreds of steps,
                    and Adam's moments carry it on for 50 to 200 more.
How it decides:     Robust z-score of log(norm) above 8, against the last 100 finite values (level: median of their
                    latest third; spread: MAD around their trend), with a floor of 0.1 on the spread: at least 2.2
                    times the recent level. Where clipping took the norm back to within twice the recent level of the
                    used norm, it is information only. The tensor named first is the one whose own norm rose most over
                    its own recent level. Of what recurs the first three are told, as by SK201. Among the first 20
                    records there is no level yet: there, of a log that begins in the midst of a run, only a climb is
                    told, three records in a row or more that each lie 1.5 times above the one before, and in all 30
                    times. After a gap in the log longer than the level reaches back, 20 records make it anew. Spikes up
                    to 30 records apart are one. A log with one of the norms, before clipping or after it, is judged by
                    that one; after clipping much is hidden.
Known false alarms: Very small batches; rare long sequences; a loss that is summed rather than averaged over a varying
                    batch. Such are told up to three times.
What to try:        Clip at the limit computed from the run's own recent norms (median + 3 robust standard deviations).
References:         ZClip (arXiv 2504.02507) and AdaGC (arXiv 2502.11034) for clipping by the run's own history; Huang et
                    al. 2025, arXiv 2501.06842 for the aftermath in the moments. 8 is
                    where a practitioner's monitor alerts on a single signal (6 where loss and gradient agree), set on the loss
                    of 6 healthy runs of 130M-1.2B parameters; no calibration on gradients alone was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.climb import foot_of_climb, in_the_midst
from stabkit.analyzers.norms import FLOOR, LEAST, SPIKE, WINDOW, norm_level, usual_clip
from stabkit.analyzers.series import TrailingLevel, known_max, known_median, lasts, log_of, previous
from stabkit.analyzers.usual import spikes, unusual
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog, Series
from stabkit.runlog.rows import Rows

__all__ = ["RULE", "GradientSpike", "GradientSpikeThresholds"]

RULE = Rule(
    code="SK203",
    name="gradient-spike",
    severity=Severity.WARNING,
    requires=(),
    any_of=(("grad_norm", "step"), ("grad_norm_used", "step")),
    min_steps=4,
)


@dataclass(frozen=True, kw_only=True)
class GradientSpikeThresholds(Thresholds):
    """When a gradient norm stands out."""

    window: int = WINDOW
    """Past values in the baseline."""
    least: int = LEAST
    """Past values needed before one is judged."""
    score: float = SPIKE
    """Robust z-score of log(norm)."""
    floor: float = FLOOR
    """Smallest spread of log(norm) taken seriously."""
    absorbed: float = 2.0
    """Used norm over its recent level up to which clipping absorbed the spike."""
    gap: int = 30
    """Records between two spikes up to which they are one, unless the norm stayed up between them."""


class GradientSpike:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: GradientSpikeThresholds | None = None) -> None:
        self.thresholds = thresholds or GradientSpikeThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """One finding per spike."""
        limits = self.thresholds
        norm, trailing = self._level(run)
        logs = log_of(norm.values)
        midst = in_the_midst(norm.steps, limits.least)
        feet = foot_of_climb(logs[: limits.least if midst else 0])
        climbs = np.append(feet >= 0, np.zeros(max(0, len(logs) - len(feet)), dtype=bool))
        level = np.exp(trailing.level)
        level[np.flatnonzero(climbs)] = norm.values[feet[feet >= 0]]
        with np.errstate(invalid="ignore"):
            out, up = trailing.score > limits.score, trailing.score > limits.score / 2
        told = spikes(unusual(trailing.excess, out) | climbs, up, limits.gap)
        if not told and len(logs) <= limits.least:
            raise NotApplicable(f"{len(logs)} gradient norms, and no climb among them; needs {limits.least + 1}")
        for first, last in told:
            yield self._finding(run, norm, level, trailing.score, first, last)

    def spiking(self, run: RunLog, steps: Sequence[int]) -> list[bool]:
        """Of each step, whether its very norm is a spike that no clipping took away; known at that step."""
        if not steps or not (run.has("grad_norm") or run.has("grad_norm_used")):
            return [False] * len(steps)
        norm, trailing = self._level(run)
        with np.errstate(invalid="ignore"):
            news = norm.steps[unusual(trailing.excess, trailing.score > self.thresholds.score)]
        return [step in news and not self._absorbed(run, step, step) for step in steps]

    def _level(self, run: RunLog) -> tuple[Series, TrailingLevel]:
        limits = self.thresholds
        return norm_level(run, limits.window, limits.score, limits.floor, limits.least)

    def _finding(self, run: RunLog, norm: Series, level: Array, score: Array, first: int, last: int) -> Finding:
        limits = self.thresholds
        during = norm.values[first : last + 1]
        step, peak = int(norm.steps[first]), first + int(np.argmax(np.where(np.isfinite(during), during, -np.inf)))
        absorbed = self._absorbed(run, step, int(norm.steps[last]))
        clipped = "clipped " if norm.metric == "grad_norm_used" and run.source != "stabkit" else ""
        good, climbed = previous(norm.steps, first), bool(np.isnan(score[first]))
        clip = None if climbed else usual_clip(run, step, limits.window)
        scored = [Evidence(metric="gradient z-score", observed=float(score[first]), expected=limits.score, step=step)]
        tensors = first_movers(run, step, limits.window)
        return found(
            RULE,
            severity=Severity.INFO if absorbed else Severity.WARNING,
            message=f"{clipped}gradient norm rose from about {level[first]:.3g} to {norm.values[peak]:.3g} "
            f"at step {norm.steps[peak]}"
            + ("; clipping absorbed it" if absorbed else "")
            + (f"; {tensors[0]} moved most" if tensors else ""),
            first_step=step,
            last_step=int(norm.steps[last]),
            event_step=int(norm.steps[peak]),
            last_good_step=good,
            state=State.ONGOING if lasts(last, len(norm.steps)) else State.RECOVERED,
            tensors=tensors,
            evidence=(
                Evidence(metric=norm.metric, observed=float(norm.values[first]), expected=float(level[first]), step=step,
                         note="where it began to climb" if climbed else "recent median"),
                *scored[: 0 if climbed else 1],
            ),
            advice="Nothing, if it stays this rare: clipping multiplied it by "
            f"{_at(run, 'clip_coefficient', step):.2g}." if absorbed
            else f"Look at the batches from step {good + 1} on, and at what the loss does next." if clip is None
            else f"Clip the gradient norm at {clip:.2g}, the run's own recent median plus 3 robust standard deviations.",
            remedy={} if absorbed or clip is None else {"clip_norm": clip},
        )  # fmt: skip

    def _absorbed(self, run: RunLog, begin: int, end: int) -> bool:
        if not (run.has("clip_coefficient") and run.has("grad_norm_used")) or np.isnan(_at(run, "clip_coefficient", begin)):
            return False
        first, last = np.searchsorted(run.steps, [begin, end]).tolist()
        used = run.series("grad_norm_used").values[:, None]
        before, during = used[max(0, first - self.thresholds.window) : first], used[first : last + 1]
        return bool(known_max(during)[0] <= self.thresholds.absorbed * known_median(before)[0])


def _at(run: RunLog, metric: str, step: int) -> float:
    return float(run.series(metric).values[np.searchsorted(run.steps, step)])


def first_movers(run: RunLog, step: int, window: int, most: int = 5) -> tuple[str, ...]:
    """The tensors whose gradient norm rose most at a step over their own median of the steps before, at least doubling."""
    for metric in ("grad_norm", "grad_norm_used"):
        if not run.has(metric, "tensor"):
            continue
        row = int(np.searchsorted(run.stream.tensor_steps, step))
        near = Rows(run, row - window, row + 1)
        if not len(near) or near.steps[-1] != step or np.isnan(near.table(metric)[-1]).all():
            continue
        past, now = near.table(metric)[:-1], near.table(metric)[-1]
        with np.errstate(over="ignore"):
            rise = now / known_median(np.where(past > 0, past, np.nan))
        rise = np.where(np.isfinite(rise), rise, 0.0)
        return tuple(run.tensors[i].name for i in np.argsort(-rise, kind="stable")[:most].tolist() if rise[i] > 2)
    return ()
