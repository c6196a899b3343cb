"""The pure functions against plain loops that are too slow to use and too simple to be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stabkit.analyzers.loss_divergence import _levels
from stabkit.analyzers.series import (
    MAD_TO_SIGMA,
    episodes,
    known_max,
    known_median,
    log_of,
    trailing_level,
    trailing_slopes,
)
from stabkit.analyzers.stale_second_moment import _above_history
from stabkit.metric import Array

FLOATS = st.floats(-1e3, 1e3) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e300, -1e300, 1e-300])


def plain_trailing_level(
    values: Array, window: int, limit: float, floor: float, least: int, patience: int
) -> tuple[Array, Array]:
    n = len(values)
    level, score = np.full(n, np.nan), np.full(n, np.nan)
    base: list[float] = []
    outliers: list[float] = []
    for i, x in enumerate(values):
        if not np.isfinite(x):
            continue
        if len(base) >= least:
            recent = np.asarray(base[-window:])
            third = max(1, len(recent) // 3)
            left, right = np.median(recent[:third]), np.median(recent[-third:])
            residual = recent - (right - left) / max(1, len(recent) - third) * np.arange(len(recent))
            scale = MAD_TO_SIGMA * np.median(np.abs(residual - np.median(residual))) + floor
            level[i], score[i] = right, (x - right) / scale if scale > 0 else np.nan
            if score[i] > limit:
                outliers.append(x)
                if len(outliers) >= patience:
                    base, outliers = outliers, []
                continue
        outliers = []
        base.append(x)
    return level, score


@pytest.mark.filterwarnings("error::RuntimeWarning")
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 400), st.sampled_from([0.0, 0.01, 1.0]), st.sampled_from([30, 100]))
def test_trailing_level(seed: int, n: int, floor: float, window: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(n) * rng.choice([0, 0.01, 1.0]) + rng.choice([0, 3.0]) * np.exp(-np.arange(n) / 40)
    for _ in range(rng.integers(0, 5)):
        at = int(rng.integers(0, n + 1))
        values[at : at + rng.integers(1, 300)] += rng.choice([20.0, -20.0, np.nan])
    arguments = (values, window, 6.0, floor, 20, 60)
    fast, (level, score) = trailing_level(*arguments), plain_trailing_level(*arguments)
    np.testing.assert_array_equal(fast.level, level)
    np.testing.assert_array_equal(fast.score, score)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@given(arrays(float, st.integers(0, 60), elements=FLOATS))
def test_trailing_level_of_anything_is_causal_and_silent(values: Array) -> None:
    whole = trailing_level(values, 10, 6.0, 0.01, 5, 8)
    for n in range(0, len(values), 7):
        np.testing.assert_array_equal(trailing_level(values[:n], 10, 6.0, 0.01, 5, 8).score, whole.score[:n])


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from([0, 10**6]))
def test_trailing_slopes(seed: int, n: int, start: int) -> None:
    rng = np.random.default_rng(seed)
    steps = start + np.cumsum(rng.integers(1, 4, n)).astype(float)
    logs = rng.standard_normal((n, 3)).cumsum(axis=0)
    logs[rng.random((n, 3)) < 0.02] = np.nan
    end = rng.integers(0, n, 20)
    begin = np.array([rng.integers(0, e + 1) for e in end])
    slopes = trailing_slopes(logs, steps, begin, end)
    for row, (a, b) in enumerate(zip(begin, end, strict=True)):
        for i in range(3):
            window = logs[a : b + 1, i]
            plain = np.polyfit(steps[a : b + 1] - steps[b], window, 1)[0] if b > a and not np.isnan(window).any() else np.nan
            assert slopes[row, i] == pytest.approx(plain, rel=1e-6, abs=1e-9, nan_ok=True)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_episodes(flags: list[bool], gap: int, seed: int) -> None:
    steps = np.cumsum(np.random.default_rng(seed).integers(1, 5, len(flags)))
    plain: list[list[int]] = []
    for i, flag in enumerate(flags):
        if flag and plain and (i - plain[-1][1] == 1 or steps[i] - steps[plain[-1][1]] - 1 <= gap):
            plain[-1][1] = i
        elif flag:
            plain.append([i, i])
    assert episodes(np.array(flags, dtype=bool), gap, steps) == [tuple(pair) for pair in plain]
    joined = episodes(np.array(flags, dtype=bool), gap)
    assert joined == episodes(np.array(flags, dtype=bool), gap, np.arange(len(flags)))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 120), st.integers(1, 20))
def test_above_history(seed: int, n: int, history: int) -> None:
    rng = np.random.default_rng(seed)
    values, limit = np.abs(rng.standard_normal((n, 3))), np.full((n, 3), 1.0)
    out, usual = np.zeros((n, 3), dtype=bool), values.copy()
    for i in range(1, n):
        out[i] = (values[i] > 1.0) & (values[i] > 1.5 * usual[max(0, i - history) : i].max(axis=0))
        usual[i] = np.where(out[i], 0.0, usual[i])
    np.testing.assert_array_equal(_above_history(values, limit, 1.5, history), out)


@given(st.integers(0, 2**32 - 1), st.integers(8, 80))
def test_levels_of_the_divergence(seed: int, n: int) -> None:
    values, window = np.random.default_rng(seed).standard_normal(n), 4
    median, best, spread = _levels(values, window)
    lowest, noise = np.inf, np.nan
    for i in range(n):
        expected = np.median(values[i - window + 1 : i + 1]) if i >= window - 1 else np.nan
        assert median[i] == pytest.approx(expected, nan_ok=True)
        if i >= 2 * window - 1:
            before = values[i - 2 * window + 1 : i - window + 1]
            if np.median(before) < lowest:
                lowest = np.median(before)
                noise = MAD_TO_SIGMA * np.median(np.abs(before - lowest))
            assert (best[i], spread[i]) == pytest.approx((lowest, noise))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@given(arrays(float, st.tuples(st.integers(0, 8), st.integers(0, 4)), elements=FLOATS))
def test_what_leaves_nan_out(values: Array) -> None:
    for i, column in enumerate(values.T):
        known = column[~np.isnan(column)]
        with np.errstate(over="ignore", invalid="ignore"):
            expected = np.median(known) if len(known) else np.nan
        assert known_median(values)[i] == pytest.approx(expected, nan_ok=True)
        assert known_max(values)[i] == pytest.approx(known.max() if len(known) else np.nan, nan_ok=True)
    assert log_of(np.array([1.0, 0.0, -1.0, np.nan, np.inf, 1e300])).tolist()[0] == 0.0


@pytest.mark.filterwarnings("error::RuntimeWarning")
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 300), st.sampled_from([30, 100]))
def test_a_level_is_learnt_anew_after_a_gap_longer_than_its_baseline(seed: int, n: int, window: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(n)
    values[rng.random(n) < 0.1] = np.nan
    steps = np.cumsum(rng.choice([1, 2, 25, 400], n, p=[0.7, 0.25, 0.03, 0.02]))
    parts: list[list[int]] = [[]]
    for i in np.flatnonzero(np.isfinite(values)).tolist():
        base = parts[-1][-window:]
        if len(base) >= 20 and steps[i] - steps[base[-1]] > steps[base[-1]] - steps[base[0]]:
            parts.append([])
        parts[-1].append(i)
    fast = trailing_level(values, window, 6.0, 0.1, 20, 60, steps)
    for part in parts:
        plain = trailing_level(values[part], window, 6.0, 0.1, 20, 60)
        for name in ("level", "score", "excess"):
            np.testing.assert_array_equal(getattr(fast, name)[part], getattr(plain, name))
