"""The baselines on the same runs: as published, and each tuned to the same false alarms on the tune part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.score.baselines import BASELINES, alarms, tuned
from benchmarks.score.bootstrap import Resampled
from benchmarks.score.match import match
from benchmarks.score.tally import Seen, figures

__all__ = ["compare"]


def compare(seen: Sequence[Seen], tune: Sequence[Seen], draws: Resampled) -> dict[str, Any]:
    """Each baseline at three settings, by "name | setting"; `keeps`: it can be turned down to the budget.

    Args:
        seen: The runs scored.
        tune: The runs whose healthy ones fix the limits.
        draws: The resampled runs.
    """
    healthy = [one.curves for one in tune if one.case.healthy]
    own = sum(len(one.alarms) for one in tune if one.case.healthy)
    length = sum(len(curves.steps) for curves in healthy)
    rate = 1000 * own / max(1, length)
    report: dict[str, Any] = {}
    for baseline in BASELINES:
        settings = {"as published": (baseline.default, np.inf), "at stabkit's rate": (tuned(baseline, healthy, rate), rate),
                    "at 1 per 1,000": (tuned(baseline, healthy, 1.0), 1.0)}  # fmt: skip
        for setting, (limit, budget) in settings.items():
            steps = [alarms(baseline, limit, one.curves).tolist() for one in seen]
            told = figures(seen, steps, draws)
            told |= {"limit": limit if np.isfinite(limit) else None, "source": baseline.source}
            told["keeps"] = 1000 * sum(len(alarms(baseline, limit, curves)) for curves in healthy) <= budget * length
            told["stabkit_more_predicted_H50"] = _gain(seen, steps, draws)
            report[f"{baseline.name} | {setting}"] = told
    return report


def _gain(seen: Sequence[Seen], steps: Sequence[Sequence[int]], draws: Resampled) -> dict[str, float | None]:
    mine = np.array([match([a.step for a in one.alarms], one.case.events, 50).predicted.sum() for one in seen], dtype=float)
    theirs = np.array([match(own, one.case.events, 50).predicted.sum() for own, one in zip(steps, seen, strict=True)])
    return draws.difference(mine, theirs.astype(float), np.array([len(one.case.events) for one in seen], dtype=float)).data()
