"""What reads the log block by block comes to the verdict that the whole tables give, whatever the size of the blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabkit.analyzers import ANALYZERS, analyze, judge
from stabkit.analyzers.growing import may_rise, rise_needed
from stabkit.analyzers.series import moving_max, trailing_slopes
from stabkit.analyzers.sweep import Carry, sweep_together, swept
from stabkit.runlog import RunLog, rows
from stabkit.runlog.rows import Rows, in_blocks
from tests.cases import load_case

CASES = ("rate_jump", "long_memory", "sigmoids", "large_eps", "growing_until_overflow", "memory_that_follows", "no_warmup")


def with_gaps(run: RunLog) -> RunLog:
    """A run of which some steps were not measured and some numbers are missing."""
    stream, rng = run.stream, np.random.default_rng(0)
    kept = np.flatnonzero(rng.random(len(stream.tensor_steps)) < 0.9)
    columns = {}
    for name, values in stream.columns.items():
        columns[name] = np.where(rng.random(values[kept].shape) < 1e-3, rng.choice([np.nan, 0.0]), values[kept])
    return replace(run, streams=(replace(stream, tensor_steps=stream.tensor_steps[kept], columns=columns),))


@pytest.mark.parametrize("name", CASES)
def test_no_verdict_depends_on_where_blocks_begin(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in (load_case(name), with_gaps(load_case(name))):
        monkeypatch.setattr(rows, "CELLS", 2**40)
        whole = analyze(replace(run)).outcomes
        monkeypatch.setattr(rows, "CELLS", 61 * len(run.tensors))
        assert analyze(replace(run)).outcomes == whole


def test_a_rule_alone_says_what_it_says_among_the_others() -> None:
    together = {outcome.rule: outcome for outcome in analyze(load_case("healthy")).outcomes}
    for analyzer in ANALYZERS:
        alone = judge(analyzer, load_case("healthy"))
        assert (alone.status, alone.reason, alone.findings) == (
            together[alone.rule].status, together[alone.rule].reason, together[alone.rule].findings,
        )  # fmt: skip


class Watched(dict[str, Any]):
    """Columns that note which of them are read."""

    def __init__(self, columns: Any) -> None:
        super().__init__(columns)
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Any:
        self.read.append(name)
        return super().__getitem__(name)


def test_columns_that_no_rule_needs_are_not_read() -> None:
    run = load_case("healthy")
    columns = Watched({**run.stream.columns, "update_absmax": np.ones((len(run.stream.tensor_steps), len(run.tensors)))})
    analyze(replace(run, streams=(replace(run.stream, columns=columns),)))
    assert "update_absmax" not in columns.read and "rms_sum" in columns.read


class Seen:
    metrics = ("grad_norm_used",)

    def __init__(self, run: RunLog) -> None:
        self.steps: list[int] = []

    def read(self, rows: Rows) -> None:
        self.steps += rows.steps.tolist()


class Breaks(Seen):
    def read(self, rows: Rows) -> None:
        raise ZeroDivisionError("no")


def test_a_sweep_sees_every_step_once_and_one_that_breaks_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CELLS", 100)
    run = load_case("healthy")
    sweep_together(run, (Breaks, Seen, Seen))
    assert swept(run, Seen).steps == run.stream.tensor_steps.tolist()
    assert swept(run, Seen) is swept(run, Seen)
    with pytest.raises(ZeroDivisionError):
        swept(run, Breaks)
    assert swept(run.until(50), Seen).steps[-1] == 50, "another view begins anew"


def test_rows_hold_what_the_table_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CELLS", 300)
    run = load_case("healthy")
    for metric in ("update_ratio", "rms_ratio", "grad_momentum_cosine", "grad_norm"):
        table = np.concatenate([block.table(metric) for block in in_blocks(run, (metric,))])
        np.testing.assert_array_equal(table, run.table(metric).values)


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(0, 7))
def test_carry(sizes: list[int], most: int) -> None:
    whole, carry, begin = np.arange(sum(sizes), dtype=float)[:, None], Carry(most), 0
    for size in sizes:
        joined = carry(whole[begin : begin + size])
        np.testing.assert_array_equal(joined, whole[max(0, begin - most) : begin + size])
        begin += size


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
def test_moving_max(seed: int, n: int, window: int) -> None:
    values = np.random.default_rng(seed).standard_normal((n + window, 2))
    plain = [values[i : i + window].max(axis=0) for i in range(n + 1)]
    np.testing.assert_array_equal(moving_max(values, window), plain)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(20, 200), st.sampled_from([0.0, 0.01, 0.05]), st.integers(1, 3))
def test_what_cannot_be_so_steep_is_passed_over_and_nothing_else(seed: int, n: int, pace: float, apart: int) -> None:
    rng, window, slope = np.random.default_rng(seed), 15, 0.02
    steps = np.cumsum(rng.integers(1, apart + 1, n)).astype(float)
    logs = np.cumsum(rng.choice([0.0, pace, -pace], (n, 3)) + 0.01 * rng.standard_normal((n, 3)), axis=0)
    logs[rng.random((n, 3)) < 0.01] = np.nan
    begins = np.searchsorted(steps, steps - window + 1)
    slopes = trailing_slopes(logs, steps, begins, np.arange(n))
    with np.errstate(invalid="ignore"):
        steep = (slopes > slope).any(axis=1)
    may = may_rise(np.exp(logs), rise_needed(steps, begins, slope), window)
    assert not np.any(steep & ~may)


def test_where_nothing_grows_no_slope_is_worked_out() -> None:
    steps = np.arange(500.0)
    norms = np.exp(0.01 * np.random.default_rng(0).standard_normal((500, 4)))
    begins = np.maximum(np.arange(500) - 49, 0)
    assert not may_rise(norms, rise_needed(steps, begins, np.log(2) / 50), 50)[60:].any()
