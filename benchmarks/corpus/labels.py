"""The labeller: what went wrong in a run, told from its outcome alone and with its future in view.

It is no predictor. It sees the losses of the whole run and of its healthy twin, the steps that were skipped, the scale, the
broken weights and the held-out loss at the end. It knows nothing of the fault. Losses are compared as logs; where a loss is
not positive, it is held to the smallest positive one.

A run may have these events:

- spike: the loss rises and returns. Log loss stands more than 6 robust deviations (1.4826 MAD + 0.01), and 5 %, above the
  median of the 101 steps around it, or above that of the 50 before it and comes to stand 50 % above it; or it departs from
  the twin's and comes back before the end. It began where its climb did. A rise that the twin shares at its peak is the
  data's, as is that of a run without a twin where its data change: that is taken from the recipe, and can only remove
  events. In the first 10 steps, where there is nothing to compare with but the twin, a
  spike stands 10 % above both the twin's loss and the run's first.
- divergence: for at least 10 steps, and to the end, the loss (median of 9) is above the twin's by more than 6 deviations of
  their difference and above its own best level so far (median of 31) by 4 deviations of its own noise, and 10 %, more than
  the twin is above its own. It began where it was above both without a break, its own noise and the twin's rise left aside.
  Deviations are those of a step, divided by 3, the root of 9.
- nonfinite: the first step with a loss or weights that are not finite.
- collapse: at least 10 skipped steps among 20 neighbours, or a loss scale that fell by 2^8 from its highest after step 30, or
  below 1, without recovering.
- failure: the held-out loss at the end is worse than the twin's by more than 3 deviations of the seeds, and 5 %; it began at
  the first of ten steps worse than the twin's after which at least 3 in 4 are. Where no training loss shows it, it is no event,
  and where the loss is not finite that is the event. A run that fails though most of its rise (3 quarters of it, in logs)
  was made good has had a spike until then. Where the data change, the twin's optimizer is another: its end is no measure.
- stagnation: the same where more than half of the weights did not change any more.

Events up to 30 steps apart are one, with the first onset and the gravest kind; its stages tell the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from benchmarks.corpus.curves import GAP, RISE, SMOOTH, WINDOW, Array, excess, logs_of, noise_of, smooth, steep, stretches

__all__ = ["Curves", "Event", "events", "excused", "failed"]

KINDS = ("spike", "divergence", "failure", "stagnation", "collapse", "nonfinite")
"""From the lightest to the gravest."""
SCORE, HIGH = 6.0, 0.5
UNSETTLED = 10
LEVEL, LASTING, WORSE, SURE = 31, 10, 0.1, 4.0
LEAST_FAILURE = 0.05
"""Of log held-out loss: three seeds can agree by chance."""
RETURNED = 0.25
"""The share of a rise that may be left when a loss is said to have returned."""


@dataclass(frozen=True)
class Event:
    """Something that went wrong, from `onset` to `end` (steps from 1); `stages` are the events it was merged from."""

    onset: int
    end: int
    kind: str
    stages: tuple[Event, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Curves:
    """A run, one number a step from step 1 on.

    Attributes:
        loss: The training loss.
        twin: That of the healthy twin; None for a reference.
        skipped: 1 where the optimizer's step was skipped.
        scale: The loss scale, NaN where there is none.
        broken: Count of weights that are not finite after the step.
        unchanged: Share of the weights that a step left as they were, NaN where unknown.
        final: The held-out loss at the end.
        twin_final: The twin's.
        deviation: Standard deviation of log held-out loss over the seeds of the healthy setting.
        data_changes: Steps from which the examples are of another kind.
        restless: Whether each batch may be of another kind.
    """

    loss: Array
    twin: Array | None = None
    skipped: Array = field(default_factory=lambda: np.zeros(0))
    scale: Array = field(default_factory=lambda: np.zeros(0))
    broken: Array = field(default_factory=lambda: np.zeros(0))
    unchanged: Array = field(default_factory=lambda: np.zeros(0))
    final: float = float("nan")
    twin_final: float | None = None
    deviation: float = 0.0
    data_changes: tuple[int, ...] = ()
    restless: bool = False


def events(curves: Curves) -> list[Event]:
    """Everything that went wrong, in order."""
    logs, twin = _compared(curves)
    spikes = _spikes(logs, twin)
    if twin is None:
        spikes = [spike for spike in spikes if not _of_data(spike, curves)]
    departed = [*_divergences(logs, twin), *_failures(curves)]
    return _merged([*spikes, *_early(logs, twin), *departed, *_nonfinite(curves), *_collapses(curves)])


def excused(curves: Curves) -> list[tuple[int, int]]:
    """The stretches where the data alone made the loss rise: it is no event, and it is no error to say that it rose.

    After a change of the data they last for 30 steps at least. Data that are restless all along excuse nothing.
    """
    if curves.restless:
        return []
    logs, twin = _compared(curves)
    stretches = _spikes(logs, twin, shared=True)
    if twin is None:
        stretches = [stretch for stretch in _spikes(logs, twin) if _of_data(stretch, curves)]
    found = []
    for each in stretches:
        ends = [step + GAP for step in curves.data_changes if each.onset <= step <= each.end]
        found.append((each.onset, min(max([each.end, *ends]), len(logs))))
    return found


def _compared(curves: Curves) -> tuple[Array, Array | None]:
    return logs_of(curves.loss), None if curves.twin is None else logs_of(curves.twin)


def _of_data(spike: Event, curves: Curves) -> bool:
    changes = curves.data_changes
    return curves.restless or any(spike.onset <= change + GAP and spike.end >= change for change in changes)


def failed(final: float, twin_final: float | None, deviation: float) -> bool:
    """Whether a held-out loss is broken, or worse than the twin's by more than three deviations of the seeds and 5 %."""
    if not np.isfinite(final):
        return True
    allowed = max(3 * deviation, LEAST_FAILURE)
    return twin_final is not None and bool(np.log(max(final, 1e-30) / max(twin_final, 1e-30)) > allowed)


def _spikes(logs: Array, twin: Array | None, shared: bool = False) -> list[Event]:
    """Where the loss stands out among its neighbours, or high above what was before: those of the run alone, or those shared.

    A spike that rings for long is no exception among its neighbours; against what was before, it is. It is shared where the
    twin stands at least half as high at its peak, or does within two steps.
    """
    found, climbing = [], steep(logs)
    for ahead, rise in ((WINDOW // 2, RISE), (0, HIGH)):
        height, deviation = excess(logs, ahead)
        others = np.zeros(len(logs)) if twin is None else np.nan_to_num(excess(twin, ahead)[0])
        with np.errstate(invalid="ignore"):
            out = (height > SCORE * deviation) & (height > np.log1p(RISE))
        out[:UNSETTLED] = False
        for first, last in stretches(out):
            peak = first + int(np.nanargmax(height[first : last + 1]))
            too = others[max(0, peak - 2) : peak + 3].max(initial=0.0)
            if height[peak] > np.log1p(rise) and (height[peak] <= 2 * too) == shared:
                while first > UNSETTLED and climbing[first] and climbing[first - 1]:
                    first -= 1
                found.append(Event(first + 1, last + 1, "spike"))
    return _merged(found)


def _early(logs: Array, twin: Array | None) -> list[Event]:
    """A rise in the first steps, held against the twin and the very first loss."""
    if twin is None:
        return []
    limit = np.maximum(twin[:UNSETTLED], logs[0]) + np.log1p(WORSE)
    with np.errstate(invalid="ignore"):
        return _joined(logs[:UNSETTLED] > limit[: len(logs)], "spike")


def _divergences(logs: Array, twin: Array | None) -> list[Event]:
    if twin is None:
        return []
    gap = smooth(logs - twin[: len(logs)])
    own = _rise(logs)
    rise = own - np.fmax(0, _rise(twin)[: len(logs)])
    with np.errstate(invalid="ignore"):
        risen = _worse(logs, twin) & (own > np.log1p(WORSE))
        away = risen & (rise > max(np.log1p(WORSE), SURE * noise_of(logs) / np.sqrt(SMOOTH)))
    found = []
    highest = 0.0
    for first, last in stretches(away):
        peak = float(np.nanmax(gap[first : last + 1], initial=0.0))
        if away[first : last + 1].sum() >= LASTING and peak > RETURNED * highest:  # else it is what an earlier one left
            highest = max(highest, peak)
            back = _returned(gap[first:])
            end = last if back is None else min(last, first + back - 1)
            while first > 0 and risen[first - 1]:
                first -= 1
            found.append(Event(first + 1, end + 1, "spike" if end < len(away) - GAP else "divergence"))
    return found


def _rise(logs: Array) -> Array:
    """How far a loss stands above its own best level so far."""
    level = smooth(logs, LEVEL)
    return smooth(logs) - np.minimum.accumulate(np.where(np.isnan(level), np.inf, level))


def _worse(logs: Array, twin: Array) -> NDArray[np.bool_]:
    """Where the loss, smoothed, is above the twin's by more than their difference's own noise."""
    gap = logs - twin[: len(logs)]
    lasting = smooth(gap)
    noise = noise_of(gap)
    with np.errstate(invalid="ignore"):
        return np.asarray(lasting > max(SCORE * noise / np.sqrt(SMOOTH), RISE))


def _nonfinite(curves: Curves) -> list[Event]:
    bad = ~np.isfinite(curves.loss)
    if len(curves.broken):
        bad = bad | (curves.broken > 0)
    return [Event(first + 1, last + 1, "nonfinite") for first, last in stretches(bad)]


def _collapses(curves: Curves) -> list[Event]:
    found = []
    if len(curves.skipped) >= 20:
        skipped = np.nan_to_num(curves.skipped) > 0
        dense = sliding_window_view(skipped, 20).sum(axis=1) >= 10
        for first, last in stretches(dense):
            inside = np.flatnonzero(skipped[first : last + 20]) + first
            if inside[-1] >= 30:  # a scale that finds its level at the beginning is as it should be
                found.append(Event(int(inside[0]) + 1, int(inside[-1]) + 1, "collapse"))
    scale = curves.scale
    if len(scale) > 40 and np.isfinite(scale[30:]).any():
        highest = np.fmax.accumulate(np.where(np.arange(len(scale)) < 30, np.nan, scale))
        low = (scale < np.fmin(1.0, highest)) | (scale <= highest / 2**8)
        if low[-1]:
            first = int(np.flatnonzero(~low)[-1]) + 1
            found.append(Event(first + 1, len(scale), "collapse"))
    return found


def _failures(curves: Curves) -> list[Event]:
    """The failure of a run, if it failed in a way that its losses show."""
    if curves.twin is None or not failed(curves.final, curves.twin_final, curves.deviation) or _nonfinite(curves):
        return []
    logs, twin = logs_of(curves.loss), logs_of(curves.twin)
    worse, n = _worse(logs, twin), len(logs)
    for i in range(n - LASTING + 1):
        if worse[i : i + LASTING].all() and worse[i:].mean() >= 0.75:
            tail = curves.unchanged[i:] if len(curves.unchanged) else np.full(1, np.nan)
            if np.isfinite(tail).any() and np.nanmedian(tail) > 0.5:
                return [Event(i + 1, n, "stagnation")]
            back = _returned(smooth(logs - twin[:n])[i:])
            return [Event(i + 1, n, "failure") if back is None else Event(i + 1, i + back, "spike")]
    return []


def _returned(gap: Array) -> int | None:
    """The number of steps after which most of a rise was made good for all the rest; None where it was not."""
    low = gap < RETURNED * np.nanmax(gap, initial=0.0)
    if len(gap) < 3 * GAP or not low[-GAP:].mean() > 0.5:
        return None
    lows = np.cumsum(low[::-1])[::-1] / np.arange(len(low), 0, -1)
    peak = int(np.nanargmax(gap))
    return next((i for i in range(peak, len(gap)) if low[i] and lows[i] > 0.75), None)


def _joined(flags: NDArray[np.bool_], kind: str) -> list[Event]:
    return [Event(first + 1, last + 1, kind) for first, last in stretches(flags)]


def _merged(found: list[Event]) -> list[Event]:
    merged: list[Event] = []
    for event in sorted(found, key=lambda e: (e.onset, e.end)):
        if merged and event.onset - merged[-1].end <= GAP:
            before = merged[-1]
            kind = max(before.kind, event.kind, key=KINDS.index)
            stages = (*(before.stages or (before,)), *(event.stages or (event,)))
            merged[-1] = Event(before.onset, max(before.end, event.end), kind, stages)
        else:
            merged.append(event)
    return merged
