"""What others would have said of the same runs: each a rule on curves that any logger has, with one limit to turn.

A rule flags steps; flags up to 30 steps apart are one alarm, at its first step. A larger limit makes every rule less
sensitive. The published limits are `default`; `tuned` finds the most sensitive limit that keeps to a budget of false alarms.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from benchmarks.score.curves import Curves, Numbers
from benchmarks.score.match import merged

__all__ = ["BASELINES", "Baseline", "alarms", "tuned"]

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Baseline:
    """A rule of somebody else's.

    Attributes:
        name: Of the rule.
        source: Where its formula comes from, and what had to be filled in.
        flags: (curves, limit) -> bool [n].
        default: The published limit.
        grid: Limits to tune over, the most sensitive first.
        merge: Whether flags close to each other are one alarm. Alarms that look at nothing are counted one by one.
    """

    name: str
    source: str
    flags: Callable[[Curves, float], Flags]
    default: float
    grid: tuple[float, ...]
    merge: bool = True


def alarms(baseline: Baseline, limit: float, curves: Curves) -> NDArray[np.int64]:
    """The steps at which a rule raises an alarm."""
    with np.errstate(all="ignore"):
        flags = baseline.flags(curves, limit)
    steps = curves.steps[flags if curves.excused is None else flags & ~curves.excused]
    return merged(steps) if baseline.merge else steps


def tuned(baseline: Baseline, healthy: Sequence[Curves], budget: float) -> float:
    """The lowest limit that, with all above it, raises at most `budget` alarms per 1,000 steps of healthy runs.

    Returns:
        That limit; infinity, which silences the rule, where even the highest of the grid is too loud.
    """
    steps, best = sum(len(curves.steps) for curves in healthy), np.inf
    for limit in reversed(baseline.grid):  # from the quiet end: at the loud one all flags of a run merge into one alarm
        if 1000 * sum(len(alarms(baseline, limit, curves)) for curves in healthy) > budget * steps:
            break
        best = limit
    return best


def _windows(values: Numbers, window: int, least: int) -> Numbers:
    """[n, window]: the values before each; NaN in front of the first. Rows with fewer than `least` steps behind are NaN."""
    padded = np.concatenate([np.full(window, np.nan), values])[: len(values) + window - 1]
    past = sliding_window_view(padded, window).copy() if len(values) else np.empty((0, window))
    past[:least] = np.nan
    return past


@lru_cache(maxsize=1024)  # it depends on no limit, and many are tried
def _z(curves: Curves, column: str, window: int, least: int, finite_only: bool = False) -> Numbers:
    """Standard deviations above the mean of the window before; NaN where there is none or nothing varies."""
    values: Numbers = getattr(curves, column)
    past = _windows(values, window, least)
    if finite_only:
        past = np.where(np.isfinite(past), past, np.nan)
    whole = least >= window and not finite_only  # a full window holds no padding, and a NaN in it is the run's own
    mean = past.mean(axis=1) if whole else _nan(np.nanmean, past)
    spread = past.std(axis=1) if whole else _nan(np.nanstd, past)
    return (values - mean) / np.where(spread < 1e-10, np.nan, spread)


def _nan(of: Callable[..., Numbers], past: Numbers) -> Numbers:
    result = np.full(len(past), np.nan)
    known = ~np.isnan(past).all(axis=1)
    if known.any():
        result[known] = of(past[known], axis=1)
    return result


def _z_score(curves: Curves, limit: float) -> Flags:
    z = _z(curves, "loss", 100, 20, finite_only=True)
    return (z > limit) | _broken(curves)


def _broken(curves: Curves) -> Flags:
    """A loss that is no number, for the rules of our own making; the published ones are left as they are."""
    return ~np.isfinite(curves.loss) & curves.known


def _kill_loss_spike(curves: Curves, limit: float) -> Flags:
    past = _windows(curves.loss, 100, 100)
    outlier = curves.loss >= limit * past.mean(axis=1)
    spike = _run_of(outlier, 5)
    high = (np.arange(len(curves.loss)) >= 200) & ((past > 10 * limit / 2).sum(axis=1) >= 50)
    return spike | high


def _run_of(flags: Flags, length: int) -> Flags:
    """Whether each is the last of at least `length` in a row."""
    padded = np.concatenate([np.zeros(length - 1, bool), flags])
    return sliding_window_view(padded, length).all(axis=1) if len(flags) else flags


def _olmo(curves: Curves, limit: float) -> Flags:
    return (_z(curves, "loss", 1000, 100) >= limit) | (_z(curves, "grad_norm", 1000, 100) >= limit)


def _olmo_core(curves: Curves, limit: float) -> Flags:
    return (_z(curves, "loss", 128, 128) > limit) | (_z(curves, "grad_norm", 128, 128) > limit)


def _zclip(curves: Curves, limit: float) -> Flags:
    norm, flags = curves.grad_norm, np.zeros(len(curves.grad_norm), bool)
    start = norm[:25]
    mean, variance = float(np.mean(start)), float(np.var(start))
    for i in range(25, len(norm)):
        spread = np.sqrt(variance)
        z = (norm[i] - mean) / (spread + 1e-6)
        flags[i] = z > limit
        kept = mean + limit * spread / (z / limit) if flags[i] else norm[i]
        mean = 0.97 * mean + 0.03 * kept
        variance = 0.97 * variance + 0.03 * (kept - mean) ** 2
    return flags


def _megatron(curves: Curves, limit: float) -> Flags:
    first = np.abs(curves.loss[:100])
    usable = first[np.isfinite(first)]
    flags = np.abs(curves.loss) >= limit * (usable.max() if len(usable) else np.nan)
    flags[:100] = False
    return flags & np.isfinite(curves.loss)


def _sagemaker(curves: Curves, limit: float) -> Flags:
    n, ratio = len(curves.loss), np.where(curves.grad_rms > 0, curves.update_ratio, np.nan)
    updates = (ratio > 10).any(axis=1) | (ratio < 1e-8).any(axis=1)
    vanishing = (curves.grad_rms < 1e-7).any(axis=1)
    exploding = np.isinf(curves.grad_rms).any(axis=1) | np.isnan(curves.grad_norm) & ~np.isnan(curves.grad_norm).all()
    stuck = np.zeros(n, bool)
    at = np.arange(10, n, 10)
    stuck[at] = curves.loss[at] > limit * curves.loss[at - 10]
    return updates | vanishing | exploding | _broken(curves) | stuck


@lru_cache(maxsize=1024)
def _robust_z(curves: Curves) -> Numbers:
    """Robust standard deviations above the median of the last 100."""
    past = np.where(np.isfinite(_windows(curves.loss, 100, 30)), _windows(curves.loss, 100, 30), np.nan)
    middle = _nan(np.nanmedian, past)
    spread = 1.4826 * _nan(np.nanmedian, np.abs(past - middle[:, None]))
    return np.nan_to_num((curves.loss - middle) / np.where(spread < 1e-10, np.nan, spread), posinf=1e6, neginf=-1e6)


def _cusum(curves: Curves, limit: float) -> Flags:
    flags, total = _broken(curves), 0.0
    for i, value in enumerate(_robust_z(curves)):
        total = max(0.0, total + value - 0.5)
        if total > limit:
            flags[i], total = True, 0.0
    return flags


def _always(curves: Curves, limit: float) -> Flags:
    return (np.arange(len(curves.steps)) + 1) % int(limit) == 0 if np.isfinite(limit) else np.zeros(len(curves.steps), bool)


def _random(curves: Curves, limit: float) -> Flags:
    rng = np.random.default_rng(zlib.crc32(curves.name.encode()))
    return rng.random(len(curves.steps)) < 1 / limit


def _grid(low: float, high: float, count: int = 49) -> tuple[float, ...]:
    return tuple(float(limit) for limit in np.geomspace(low, high, count))


OWN = "a textbook rule; a loss that is not finite is an alarm"

BASELINES: tuple[Baseline, ...] = (
    Baseline("z-score, 3 sd", f"loss, window 100 from step 20 on: {OWN}", _z_score, 3.0, _grid(1, 100)),
    Baseline("z-score, 6 sd", f"loss, window 100 from step 20 on: {OWN}", _z_score, 6.0, _grid(1, 100)),
    Baseline("KillLossSpike", "llm-foundry: 5 losses in a row at twice the mean of the last 100, or 50 of them above 10 "
             "(tuned: both limits by one factor)",
             _kill_loss_spike, 2.0, _grid(1, 100)),
    Baseline("OLMo spike score", "loss or gradient norm 7 sd above the mean of the last 1,000 (here: of at least 100)",
             _olmo, 7.0, _grid(1, 100)),
    Baseline("OLMo-core StabilityMonitor", "loss or gradient norm 6 sd above the mean of the last 128", _olmo_core, 6.0,
             _grid(1, 100)),
    Baseline("ZClip", "gradient norm 2.5 sd above its exponential mean (0.97) after 25 steps, fed with clipped norms", _zclip,
             2.5, _grid(1, 100)),
    Baseline("Megatron spiky loss", "loss at 10 times the largest of the first 100", _megatron, 10.0, _grid(0.05, 100)),
    Baseline("SageMaker Debugger", "WeightUpdateRatio, VanishingGradient (root mean square for mean), ExplodingTensor and "
             "LossNotDecreasing (the limit turned: loss over that of 10 steps before)", _sagemaker, 0.999,
             _grid(0.9, 1000, 99)),
    Baseline("CUSUM", f"loss in robust sd of the last 100, reference 0.5, limit 5: {OWN}", _cusum, 5.0, _grid(1, 3000, 65)),
    Baseline("always", "an alarm at every step; tuned: every so many steps", _always, 1.0,
             tuple(sorted({float(round(limit)) for limit in np.geomspace(1, 2000, 99)})), merge=False),
    Baseline("random", "alarms thrown like dice; tuned: one in so many steps", _random, 20.0, _grid(1, 1e5, 99), merge=False),
)  # fmt: skip
"""Formulas as read in the sources; sd is the standard deviation."""
