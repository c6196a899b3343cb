"""What recurs is how a run is; what a run has never done, or what lasts, is news."""

from __future__ import annotations

import numpy as np
import pytest
from analyzer_runs import make_run, told
from hypothesis import given, settings
from hypothesis import strategies as st

from stabkit.analyzers import analyze, judge
from stabkit.analyzers.gradient_spike import GradientSpike
from stabkit.analyzers.loss_spike import LossSpike
from stabkit.analyzers.usual import LASTING, OFTEN, RARELY, TIMES, WINDOW, spikes, unusual
from stabkit.metric import Array

N = 2000
DESCENT = 2.5 + 3 * np.exp(-np.arange(N) / 100)


def hard_batches(share: float, seed: int, rise: float = 0.7) -> Array:
    """log(loss): little noise, and a share of the batches much harder than the others, all along."""
    rng = np.random.default_rng(seed)
    return np.asarray(0.03 * rng.standard_normal(N) + rise * (rng.random(N) < share))


def alarms(log: Array, steps: Array | None = None) -> list[int]:
    run = make_run(DESCENT * np.exp(log), steps=steps, tensors=())
    return [f.first_step for f in judge(LossSpike(), run).findings]


@pytest.mark.parametrize("share", [0.5, 0.33, 0.1, 0.05, 0.02])
def test_batches_that_are_harder_all_along_are_how_the_run_is(share: float) -> None:
    assert np.mean([len(alarms(hard_batches(share, seed))) for seed in range(4)]) <= 3  # of 10 to 1,000 hard ones each


@pytest.mark.parametrize("tail", ["exponential", "laplace"])
def test_heavy_tails_of_the_noise_are_how_the_run_is(tail: str) -> None:
    draws = (np.random.default_rng(seed) for seed in range(4))
    found = [alarms(0.05 * getattr(rng, tail)(size=N)) for rng in draws]
    assert np.mean([len(one) for one in found]) <= 1


@pytest.mark.parametrize("share", [0.33, 0.05])
def test_among_hard_batches_a_rise_beyond_them_is_still_told(share: float) -> None:
    log = hard_batches(share, 1)
    log[1500:1503] = 2.0
    assert 1501 in alarms(log)
    assert not any(1470 <= step <= 1530 for step in alarms(hard_batches(share, 1)))


def test_a_spike_that_comes_again_and_again_is_told_the_first_three_times() -> None:
    log = 0.03 * np.random.default_rng(0).standard_normal(N)
    log[200::100] += 1.0
    assert alarms(log) == [201, 301, 401]


def test_spikes_far_apart_are_told_every_time() -> None:
    log = 0.03 * np.random.default_rng(0).standard_normal(N)
    log[200::300] += 1.0
    assert alarms(log) == [201, 501, 801, 1101, 1401, 1701]


def test_spikes_that_last_are_told_every_time() -> None:
    log = 0.03 * np.random.default_rng(0).standard_normal(N)
    for at in range(200, N - 30, 100):
        log[at : at + 30] += np.exp(-np.arange(30) / 8)
    assert [round(step, -1) for step in alarms(log)] == list(range(200, N - 30, 100))


@pytest.mark.parametrize("every", [1, 10, 100, 500])
def test_windows_count_records_whatever_lies_between_two(every: int) -> None:
    log = 0.03 * np.random.default_rng(0).standard_normal(N)
    log[[500, 520, 900]] += 1.0  # the first two are one spike
    assert alarms(log, every * np.arange(N)) == [500 * every, 900 * every]


def test_a_shift_that_hovers_about_the_limit_is_one_spike() -> None:
    log = 0.02 * np.random.default_rng(0).standard_normal(N)
    log[1000:] += 0.18  # about 6 of the spread of 0.02 and the floor of 0.01
    assert len(alarms(log)) == 1


def test_the_gradient_norm_has_habits_too() -> None:
    norm = np.exp(hard_batches(0.05, 0, rise=2.0))
    run = make_run(np.full(N, 3.0), grad_norm=norm, grad_norm_used=norm, tensors=())
    assert len(judge(GradientSpike(), run).findings) <= 3
    norm[1500:1503] = 200.0
    run = make_run(np.full(N, 3.0), grad_norm=norm, grad_norm_used=norm, tensors=())
    assert ("SK203", 1501) in told(analyze(run))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 900))
def test_unusual_against_a_loop(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    excess = rng.standard_normal(n) * rng.choice([1.0, 5.0], n, p=[0.9, 0.1])
    excess[rng.random(n) < 0.02] = np.nan
    for at in rng.integers(0, n + 1, 3):
        excess[at : at + 5] = 9.0
    out = excess > 4
    expected = np.zeros(n, dtype=bool)
    rises: list[tuple[int, float]] = []  # where each ended, and how high it was
    for i in range(n):
        if i and excess[i - 1] > 0 and not excess[i] > 0:
            begin = i - 1
            while begin and excess[begin - 1] > 0:
                begin -= 1
            rises.append((i - 1, float(excess[begin:i].max())))
        begin = i
        while begin and excess[begin - 1] > 0:
            begin -= 1
        heights = sorted((height for end, height in rises if end >= begin - WINDOW), reverse=True)
        high = len(heights) < OFTEN or excess[i] > TIMES * heights[OFTEN - 1]
        recent = out[max(0, i + 1 - WINDOW) : i + 1]
        starts = sum(bool(out[j] and not (j and out[j - 1])) for j in range(max(0, i + 1 - WINDOW), i + 1))
        rare = RARELY * starts <= max(int((~recent).sum()), RARELY)
        lasting = i + 1 >= LASTING and bool(out[i + 1 - LASTING : i + 1].all()) and rare
        expected[i] = out[i] and (high or lasting)
    np.testing.assert_array_equal(unusual(excess, out), expected)


@given(st.lists(st.sampled_from([0, 1, 2]), max_size=40), st.integers(0, 4))
def test_spikes_against_a_loop(states: list[int], gap: int) -> None:
    told_, up = np.array(states, dtype=int) == 2, np.array(states, dtype=int) >= 1
    plain: list[list[int]] = []
    for i, state in enumerate(states):
        between = states[plain[-1][1] + 1 : i] if plain else []
        if state == 2 and plain and (len(between) <= gap or 2 * sum(s >= 1 for s in between) > len(between)):
            plain[-1][1] = i
        elif state == 2:
            plain.append([i, i])
    assert spikes(told_, up, gap) == [tuple(pair) for pair in plain]
