"""How far a figure could be off had other runs been drawn: bootstrap over whole runs, for their steps are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "Resampled", "wilson"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: The figure; NaN where there was nothing to measure it on.
        low: 2.5th percentile over resampled runs.
        high: 97.5th.
        count: What it was counted on: events, alarms, steps or runs.
    """

    value: float
    low: float
    high: float
    count: float

    def data(self) -> dict[str, float | None]:
        """For JSON: what is not known is null."""
        return {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}


class Resampled:
    """Runs drawn again with replacement; every figure is worked out on the same draws, so that differences are fair.

    Args:
        runs: How many there are.
        draws: How often they are drawn.
        seed: Of the draws.
    """

    def __init__(self, runs: int, draws: int = 2000, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        shape = (draws, runs)
        self.weights: Numbers = rng.multinomial(runs, np.full(runs, 1 / runs), draws) if runs else np.zeros(shape)

    def ratio(self, above: Sequence[float] | Numbers, below: Sequence[float] | Numbers, scale: float = 1.0) -> Estimate:
        """Sum of `above` over sum of `below`, each one number a run. At 0 and at 1 the bootstrap would
        claim certainty: there the bound is that of the rule of three."""
        top, bottom = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
        total = bottom.sum()
        if not total:
            return Estimate(np.nan, np.nan, np.nan, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = (self.weights @ top) / (self.weights @ bottom)
        low, high = np.nanpercentile(drawn, (2.5, 97.5))
        if not top.any():
            high = min(3 / total, 1.0)
        elif scale == 1 and np.array_equal(top, bottom):  # a share
            low = max(1 - 3 / total, 0.0)
        return Estimate(scale * top.sum() / total, scale * float(low), scale * float(high), float(total))

    def difference(self, one: Numbers, other: Numbers, below: Numbers) -> Estimate:
        """How much larger one ratio is than another over the same `below`."""
        mine, theirs = self.ratio(one, below), self.ratio(other, below)
        if not mine.count:
            return mine
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = (self.weights @ (np.asarray(one, dtype=float) - other)) / (self.weights @ np.asarray(below, dtype=float))
        low, high = np.nanpercentile(drawn, (2.5, 97.5))
        return Estimate(mine.value - theirs.value, float(low), float(high), mine.count)

    def quantile(self, values: Sequence[float] | Numbers, run_of: Sequence[int], share: float) -> Estimate:
        """A quantile of values that belong to runs, such as the median lead of events; the lower one where two are middle."""
        if not len(values):
            return Estimate(np.nan, np.nan, np.nan, 0)
        order = np.argsort(values, kind="stable")
        x, run = np.asarray(values, dtype=float)[order], np.asarray(run_of, dtype=np.int64)[order]
        mass = np.cumsum(self.weights[:, run], axis=1)
        mass = mass[mass[:, -1] > 0]
        drawn = x[np.argmax(mass >= share * mass[:, -1:], axis=1)]
        low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (np.nan, np.nan)
        value = x[int(np.argmax(np.arange(1, len(x) + 1) >= share * len(x)))]
        return Estimate(float(value), float(low), float(high), float(len(x)))


def wilson(right: float, count: float) -> tuple[float, float]:
    """95 % interval of a proportion: sane at 0 and 1, where a bootstrap would claim certainty."""
    if not count:
        return np.nan, np.nan
    z, p = 1.959964, right / count
    middle, spread = p + z * z / (2 * count), z * np.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, float((middle - spread) / scale)), min(1.0, float((middle + spread) / scale))
