"""Alarms against events: which event was detected or foretold, how early, and which alarm was false.

An event that begins at step `onset` is *detected* by an alarm in [onset - H, onset + 5] and *predicted* by one in
[onset - H, onset - 1]. An alarm after that, up to 100 steps after the onset or as long as the event lasts, is *late*: it is
neither right nor false. An alarm within 5 steps from the onset of one event tells that event; it foretells no later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.score.corpus import Event

__all__ = ["AFTER", "HORIZONS", "LATE", "Matched", "match", "merged"]

HORIZONS = (8, 50, 200)
AFTER = 5
LATE = 100

Flags = NDArray[np.bool_]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Matched:
    """The alarms of one run held against its events, for one horizon.

    Attributes:
        detected: bool [events].
        predicted: bool [events].
        late: bool [events], not detected but told afterwards.
        lead: int64 [events], steps from the first alarm that foretells it to the onset; 0 where none does.
        first: int64 [events], the first alarm that detects it; -1 where none does.
        right: bool [alarms], detects an event.
        foretells: bool [alarms], predicts an event.
        after: bool [alarms], neither, and late for an event.
        false: bool [alarms], none of these.
        before: bool [alarms], false and before the first event is in sight; in a healthy run none is.
    """

    detected: Flags
    predicted: Flags
    late: Flags
    lead: Steps
    first: Steps
    right: Flags
    foretells: Flags
    after: Flags
    false: Flags
    before: Flags


def match(alarms: Sequence[int] | Steps, events: Sequence[Event], horizon: int) -> Matched:
    """Hold alarms against events.

    Args:
        alarms: Steps, increasing.
        events: By onset.
        horizon: H, in steps.
    """
    step = np.asarray(alarms, dtype=np.int64).reshape(-1, 1)  # [alarms, 1] against [1, events]
    onset = np.array([event.onset for event in events], dtype=np.int64).reshape(1, -1)
    end = np.array([event.end for event in events], dtype=np.int64).reshape(1, -1)
    told = (step >= onset) & (step <= onset + AFTER)
    ahead = (step >= onset - horizon) & (step < onset) & ~told.any(axis=1, keepdims=True)
    hits = told | ahead
    behind = (step > onset + AFTER) & (step <= np.maximum(onset + LATE, end))
    right, foretells = hits.any(axis=1), ahead.any(axis=1)
    after = behind.any(axis=1) & ~right
    false = ~right & ~after
    detected, predicted = hits.any(axis=0), ahead.any(axis=0)
    lead = np.max(np.where(ahead, onset - step, 0), axis=0, initial=0)
    first = np.where(detected, np.argmax(hits, axis=0) if len(step) else 0, -1)
    sight = int(onset.min()) - horizon if len(events) else 0
    return Matched(
        detected, predicted, behind.any(axis=0) & ~detected, lead, first, right, foretells, after, false,
        false & (step[:, 0] < sight),
    )  # fmt: skip


def merged(steps: Sequence[int] | Steps, gap: int = 30) -> Steps:
    """The first steps of groups of alarms that are at most `gap` steps apart."""
    index = np.asarray(steps, dtype=np.int64)
    return index[np.diff(index, prepend=index[:1] - gap - 1) > gap]
