"""Downsampling against slow loops: every bucket keeps its extremes, and what is no number stays visible."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stabkit.report.downsample import Buckets, extremes, keep

NUMBERS = st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0]))
SERIES = st.lists(NUMBERS, min_size=1, max_size=200).map(np.array)
STEPS = st.lists(st.integers(1, 10_000), min_size=1, max_size=120, unique=True).map(lambda steps: np.array(sorted(steps)))


def parts(rows: int, most: int) -> list[list[int]]:
    """The rows of each bucket of `keep`, counted one by one."""
    buckets = max(most // 3, 1)
    first = [int(i * rows / buckets) for i in range(buckets)]
    return [part for part in (list(range(a, b)) for a, b in zip(first, [*first[1:], rows], strict=True)) if part]


@given(SERIES, st.integers(3, 60))
@settings(max_examples=300)
def test_every_bucket_keeps_its_extremes_and_its_broken_numbers(values: np.ndarray, most: int) -> None:
    kept = keep(values, most)
    assert list(kept) == sorted(set(kept)) and {0, len(values) - 1} <= set(kept)
    if len(values) <= most:
        assert len(kept) == len(values)
        return
    assert len(kept) <= most + 2
    for part in parts(len(values), most):
        here = [values[row] for row in part if row in set(kept)]
        finite = [value for value in values[part] if math.isfinite(value)]
        if finite:
            assert min(finite) in here and max(finite) in here
        if len(finite) < len(part):
            assert any(not math.isfinite(value) for value in here)


@given(STEPS, st.integers(1, 40), st.data())
@settings(max_examples=200)
def test_buckets_hold_every_step_once_and_the_extremes_of_each(steps: np.ndarray, most: int, data: st.DataObject) -> None:
    values = np.array([data.draw(NUMBERS) for _ in steps])
    buckets = Buckets.of(steps, most)
    assert 1 <= buckets.count <= most
    with np.errstate(invalid="ignore"):
        low, high = extremes(values, buckets.starts)
    seen = 0
    for place, bucket in enumerate(buckets.filled):
        begin = buckets.first + bucket * buckets.width
        here = [value for step, value in zip(steps, values, strict=True) if begin <= step < begin + buckets.width]
        known = [value for value in here if not math.isnan(value)]
        seen += len(here)
        assert here
        assert (low[place], high[place]) == (min(known), max(known)) if known else math.isnan(low[place])
    assert seen == len(steps)


def test_a_log_of_every_tenth_step_has_no_empty_buckets() -> None:
    buckets = Buckets.of(np.arange(10, 2001, 10), 400)
    assert (buckets.count, len(buckets.filled), buckets.width) == (200, 200, 10)
