"""Chance: what the same alarms would catch had they come at other steps of the same runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.score.corpus import Event
from benchmarks.score.match import match

__all__ = ["Shifted", "shifted"]


@dataclass(frozen=True)
class Shifted:
    """Recall of alarms moved around the circle of each run's steps.

    Attributes:
        detected: Mean share of events detected.
        predicted: Mean share predicted.
        detected_p: Share of the shifts that detect as many events as the real alarms or more, the real ones counted in.
        predicted_p: The same of predictions.
        shifts: How many there were.
    """

    detected: float
    predicted: float
    detected_p: float
    predicted_p: float
    shifts: int

    def data(self) -> dict[str, float | None]:
        """For JSON: what is not known is null."""
        return {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}


def shifted(
    alarms: Sequence[Sequence[int]], events: Sequence[Sequence[Event]], steps: Sequence[tuple[int, int]], horizon: int,
    shifts: int = 1000, seed: int = 0,
) -> Shifted:  # fmt: skip
    """Shift the alarms of every run by a number of steps of its own, again and again.

    Args:
        alarms: Of each run, steps.
        events: Of each run.
        steps: Of each run, its first and its last step.
        horizon: H.
        shifts: How often.
        seed: Of the shifts.
    """
    rng = np.random.default_rng(seed)
    total = sum(map(len, events))
    counts, real = np.zeros((shifts, 2)), np.zeros(2)
    for own, sick, (first, last) in zip(alarms, events, steps, strict=True):
        if not len(sick) or not len(own):
            continue
        found = match(sorted(own), sick, horizon)
        real += found.detected.sum(), found.predicted.sum()
        length = last - first + 1
        known: dict[int, tuple[int, int]] = {}  # a run has fewer steps than there are shifts
        for i, by in enumerate(rng.integers(0, length, shifts)):
            if by not in known:
                moved = match(np.sort((np.asarray(own) - first + by) % length + first), sick, horizon)
                known[by] = int(moved.detected.sum()), int(moved.predicted.sum())
            counts[i] += known[by]
    if not total:
        return Shifted(np.nan, np.nan, np.nan, np.nan, shifts)
    p = (1 + (counts >= real).sum(axis=0)) / (1 + shifts)
    return Shifted(*map(float, counts.mean(axis=0) / total), *map(float, p), shifts)
