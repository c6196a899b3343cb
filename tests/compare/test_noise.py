"""Beyond noise: the arithmetic against slow ones, and that noise alone is not told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from stabkit.compare.noise import LAST, block_width, blocks_of, discoveries, known_median, log_of


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1e-300, 1e-9]), max_size=40), st.sampled_from([0.01, 0.05, 0.3]))
@settings(max_examples=50)
def test_discoveries_are_those_of_the_step_up_procedure_by_its_book(p: list[float], rate: float) -> None:
    ordered, count = sorted(p), len(p)
    harmonic = math.fsum(1 / i for i in range(1, count + 1))
    passing = [i for i in range(1, count + 1) if ordered[i - 1] <= rate * i / (count * harmonic)]
    limit = ordered[passing[-1] - 1] if passing else -1
    assert discoveries(np.array([*p, math.nan]), rate).tolist() == [value <= limit for value in p] + [False]


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=25)
def test_a_block_s_difference_is_its_median_and_its_probability_lasts(seed: int, series: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (np.where(rng.random((70, series)) < 0.1, np.nan, rng.normal(0, 0.3, (70, series))) for _ in range(2))
    blocks = blocks_of(a, b)
    for block in range(70 // blocks.width):
        rows = slice(block * blocks.width, (block + 1) * blocks.width)
        for column in range(series):
            known = (a - b)[rows, column]
            known = known[~np.isnan(known)]
            expected = np.median(known) if 2 * len(known) >= blocks.width else np.nan
            assert blocks.difference[block, column] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(blocks.p[-(LAST - 1) :]).all(), "the last blocks cannot know whether it lasts"


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_noise_alone_is_told_in_no_run_of_many(correlation: float) -> None:
    """60 series a comparison, 20 comparisons, offsets of a quarter of a unit among them."""
    told = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noise = rng.normal(0, 0.3, (2, 200, 60))
        noise = lfilter([math.sqrt(1 - correlation**2)], [1, -correlation], noise, axis=1)
        a, b = noise + rng.normal(0, 0.1, (2, 1, 60))
        told += bool(discoveries(blocks_of(a, b).p).any())
    assert told == 0


@pytest.mark.parametrize("times", [3.0, 6.0])
def test_a_lasting_difference_is_told_where_it_begins_and_a_passing_one_is_not(times: float) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 0.2, (320, 30)), rng.normal(0, 0.2, (320, 30))
    a[160:, 4] += times * 0.2 * math.sqrt(2)
    a[160 : 160 + block_width(320), 9] += times * 0.2 * math.sqrt(2)
    blocks = blocks_of(a, b, from_before=True)
    found = np.argwhere(discoveries(blocks.p))
    assert set(found[:, 1].tolist()) == {4}
    assert abs(found[0, 0] * blocks.width - 160) <= blocks.width


def test_a_lasting_offset_of_a_tensor_is_no_parting() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(1.5, 0.2, (320, 5)), rng.normal(0, 0.2, (320, 5))
    assert discoveries(blocks_of(a, b).p).any()
    assert not discoveries(blocks_of(a, b, from_before=True).p).any()


def test_two_smooth_curves_within_five_per_cent_are_one() -> None:
    steps = np.arange(200)[:, None]
    a = log_of(3 * np.exp(-steps / 80))
    assert not discoveries(blocks_of(a, a + 0.04).p).any()
    assert discoveries(blocks_of(a, a + 0.2).p).all(where=~np.isnan(blocks_of(a, a).p))


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(-5, 5) | st.just(math.nan), min_size=3, max_size=3), min_size=1, max_size=9))
def test_the_median_leaves_out_what_is_missing(rows: list[list[float]]) -> None:
    values = np.array(rows)
    for column, found in enumerate(known_median(values)):
        known = values[:, column][~np.isnan(values[:, column])]
        assert found == pytest.approx(np.median(known) if len(known) else math.nan, nan_ok=True)
