"""The heatmap against slow loops: what each cell shows, and how far it is from the tensor's own past."""

from __future__ import annotations

import base64
import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabkit.report.heatmap import heatmap
from stabkit.report.past import forward, median_and_scatter, scatter_inside
from stabkit.runlog import RunLog, TensorInfo

TENSORS = 7
NUMBERS = st.one_of(st.just(math.nan), st.floats(-9, 9), st.integers(-2, 2).map(float))
UNKNOWN, MISSING, ZERO, NONFINITE = -128, 0, 1, 65_535


def odd_run(steps: int, every: int = 1) -> RunLog:
    """Gradients with zeros, gaps, numbers of any size and numbers that are none; updates that are skipped now and then."""
    rng = np.random.default_rng(steps)
    shape = (steps, TENSORS)
    squares = rng.lognormal(0, 0.3, shape) * 10.0 ** np.array([-38, -3, 0, 0, 4, 30, 0])
    squares[steps // 2, 1] *= 1e6
    squares[rng.random(shape) < 0.02] = 0
    squares[: steps // 3, 3] = np.nan
    squares[rng.random(shape) < 0.01] = np.nan
    squares[rng.random(shape) < 0.003] = np.inf
    counts = (rng.random(shape) < 0.003) * 5.0
    columns = {"grad_sumsq": squares, "update_sumsq": 1e-6 * rng.lognormal(0, 1, shape),
               "weight_sumsq": np.full(shape, 4.0), "grad_nonfinite": counts}  # fmt: skip
    at = every * np.arange(1, steps + 1)
    at[steps // 4 :] += 13 * every  # a stretch of the log is missing
    skipped = (rng.random(steps) < 0.05).astype(float)
    infos = tuple(TensorInfo(f"blocks.{i // 3}.part{i}", (8, 8)) for i in range(TENSORS))
    return RunLog.from_arrays(at, {"loss": np.ones(steps), "skipped": skipped}, infos, columns)


def log10(value: float) -> float:
    return math.log10(value) if 0 < value < math.inf else math.nan


def median(values: list[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else statistics.median(values)


def lower_median(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median_low(known) if known else math.nan


def pasts(values: list[float]) -> list[list[float]]:
    """Of each value the 24 before it, or as many as there are, NaN replaced by the last number before."""
    filled = [next((each for each in reversed(values[: i + 1]) if not math.isnan(each)), math.nan) for i in range(len(values))]
    return [filled[max(0, i - 24) : i] if i >= 5 else [math.nan] for i in range(len(values))]


def scatters(values: list[float]) -> list[float]:
    return [median([abs(value - median(past)) for value in past]) for past in pasts(values)]


def slow(run: RunLog, metric: str, first: int, last: int, width: int, tensor: int) -> dict[int, tuple[float, float, bool]]:
    """By the first step of each bucket: its value, its deviation in tenths, and whether anything in it was no number."""
    series = run.series(metric, run.tensors[tensor].name)
    skips = run.stream.step_values["skipped"] if metric == "update_ratio" else np.zeros(len(series.steps))
    values = [math.nan if skip else float(value) for skip, value in zip(skips, series.values, strict=True)]
    counts = run.stream.columns["grad_nonfinite"][:, tensor]
    buckets: dict[int, list[int]] = {}
    for row, step in enumerate(run.stream.tensor_steps):
        if max(1, first - 24 * width) <= step <= last:
            buckets.setdefault(first + (int(step) - first) // width * width, []).append(row)
    held = [[values[row] for row in rows] for rows in buckets.values()]
    known = [[value for value in here if not math.isnan(value)] or [math.nan] for here in held]
    inside = []
    for here in held:
        some = [log10(here[i * len(here) // 12]) for i in range(12)]
        inside.append(lower_median([abs(value - lower_median(some)) for value in some]))
    usual = [median(past) for past in pasts(inside)]
    sides = []
    for extremes in ([min(values) for values in known], [max(values) for values in known]):
        logs = [log10(value) for value in extremes]
        levels, spreads = [median(past) for past in pasts(logs)], scatters(logs)
        spread = [max(1.4826 * max(a, b), 0.02) if a == a and b == b else math.nan for a, b in zip(spreads, usual, strict=True)]
        sides.append([(a - b) / c for a, b, c in zip(logs, levels, spread, strict=True)])
    found = {}
    for place, (step, rows) in enumerate(buckets.items()):
        below, above = sides[0][place], sides[1][place]
        rises = not abs(below) > abs(above)
        value, deviation = (max(known[place]), above) if rises else (min(known[place]), below)
        broken = any(counts[row] > 0 for row in rows) or any(math.isinf(each) for each in known[place])
        if step >= first:
            found[step] = value, 10 * deviation, broken
    return found


def drawn(figure: dict[str, Any], metric: str) -> tuple[Any, Any, Any]:
    """Codes, values and deviations in tenths [tensors, columns], as the page's script reads them."""
    quantity = next(each for each in figure["quantities"] if each["metric"] == metric)
    shape = (len(figure["tensors"]), figure["columns"])
    codes = np.frombuffer(base64.b64decode(quantity["level"]), "<u2").reshape(shape)
    values = 10 ** (quantity["low"] + (codes.astype(float) - 2) / 65_532 * (quantity["high"] - quantity["low"]))
    return codes, values, np.frombuffer(base64.b64decode(quantity["deviation"]), np.int8).reshape(shape)


@pytest.mark.parametrize(("steps", "every", "first", "last"), [
    (90, 1, 1, None), (430, 10, 1, None), (2500, 1, 1, None), (2500, 1, 1200, 1300), (2500, 1, 10, 1500), (300, 10, 700, 1300),
])  # fmt: skip
@pytest.mark.parametrize("metric", ["grad_norm", "update_ratio"])
def test_each_cell_is_as_slow_loops_find_it(steps: int, every: int, first: int, last: int | None, metric: str) -> None:
    run = odd_run(steps, every)
    figure = heatmap(run, first, last)
    assert figure and figure["first"] >= first and figure["columns"] <= 400
    codes, values, deviations = drawn(figure, metric)
    shown = seen = 0
    for row, name in enumerate(figure["tensors"]):
        tensor = [info.name for info in run.tensors].index(name)
        expected = slow(run, metric, figure["first"], figure["last"], figure["width"], tensor)
        for column in range(figure["columns"]):
            value, tenths, broken = expected.get(figure["first"] + column * figure["width"], (math.nan, math.nan, False))
            code, got = int(codes[row, column]), int(deviations[row, column])
            if broken:
                assert (code, got) == (NONFINITE, UNKNOWN)
            elif not value > 0:
                assert code == (ZERO if value == 0 else MISSING)
            else:
                assert values[row, column] == pytest.approx(value, rel=0.01)
                seen += 1
            if not broken and math.isnan(tenths):
                assert got == UNKNOWN
            elif not broken:
                assert abs(got - min(max(tenths, -127), 127)) < 0.51, "of 24 bits, rounded to tenths"
                shown += 1
    assert shown > 100 and seen > 100, "or this test says nothing"


def test_a_close_look_shows_single_steps_against_the_past_before_it() -> None:
    run = odd_run(2500)
    figure = heatmap(run, 1240, 1280)
    assert figure and (figure["first"], figure["last"], figure["width"], figure["columns"]) == (1240, 1280, 1, 41)
    _, _, deviations = drawn(figure, "grad_norm")
    row = figure["tensors"].index(run.tensors[1].name)
    assert deviations[row, 1250 + 1 + 13 - 1240] == 127, "the spike"
    assert np.mean(deviations[row, :5] != UNKNOWN) > 0.5, "also the first cells have a past"


def test_where_nothing_was_recorded_there_is_no_picture() -> None:
    run = odd_run(200)
    assert heatmap(run, 5000, 6000) is None and heatmap(run, 51, 60) is None
    assert heatmap(run.until(0)) is None


def test_a_quick_picture_is_one_quantity_of_the_whole_one() -> None:
    run = odd_run(200)
    whole, quick = heatmap(run), heatmap(run, quick=True)
    assert whole and quick and len(whole["quantities"]) == 3
    assert quick == whole | {"quantities": whole["quantities"][:1]}


SIZES = st.integers(1, 40)
COLUMNS = SIZES.flatmap(lambda rows: st.lists(st.lists(NUMBERS, min_size=rows, max_size=rows), min_size=1, max_size=3))


@given(COLUMNS)
@settings(max_examples=50)
def test_rolling_medians_are_those_of_a_sort(columns: list[list[float]]) -> None:
    values = np.array(columns).T
    medians, scatter = median_and_scatter(forward(values))
    for column, series in enumerate(columns):
        expected = [median(past) for past in pasts(series)]
        np.testing.assert_array_equal(medians[:, column], expected)
        np.testing.assert_array_equal(scatter[:, column], scatters(series))


@given(st.lists(st.lists(NUMBERS, min_size=12, max_size=12), min_size=1, max_size=5))
def test_the_scatter_inside_leaves_out_what_is_missing(buckets: list[list[float]]) -> None:
    found = scatter_inside(np.array(buckets)[:, :, None])[:, 0]
    np.testing.assert_array_equal(found, [lower_median([abs(v - lower_median(some)) for v in some]) for some in buckets])
