"""The loss as a line of characters, and the whole report at several widths."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabkit.finding import Severity, Status
from stabkit.report.sparkline import BARS, BROKEN, course
from stabkit.report.text import report
from stabkit.report.words import shortened
from stabkit.runlog import RunLog


def run_of(losses: list[float], path: str = "runs/a") -> RunLog:
    steps = np.arange(1, len(losses) + 1)
    values = {"loss": np.array(losses), "loss_reduction": np.ones(len(losses))}
    return RunLog.from_arrays(steps, values, path=path, source="stabkit")


@given(
    st.lists(st.tuples(st.integers(1, 400), st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf])), min_size=1,
             max_size=80, unique_by=lambda row: row[0]),
    st.integers(1, 60),
)  # fmt: skip
@settings(max_examples=300)
def test_every_stretch_shows_its_highest_value_or_that_it_is_broken(rows: list[tuple[int, float]], width: int) -> None:
    rows = sorted(rows)
    steps, values = np.array([step for step, _ in rows]), np.array([value for _, value in rows])
    width = min(width, int(steps[-1] - steps[0]) + 1)
    line = course(steps, values, width)
    assert len(line) == width
    held: list[list[float]] = [[] for _ in range(width)]
    for step, value in rows:
        held[min((step - rows[0][0]) * width // (rows[-1][0] - rows[0][0] + 1), width - 1)].append(value)
    tops = {place: max(here) for place, here in enumerate(held) if here and all(map(math.isfinite, here))}
    for place, (here, shown) in enumerate(zip(held, line, strict=True)):
        assert (shown == " ") == (not here)
        assert (shown == BROKEN) == (bool(here) and place not in tops)
    for a in tops:
        for b in tops:
            if tops[a] <= tops[b]:
                assert BARS.index(line[a]) <= BARS.index(line[b])


def test_a_spike_of_one_step_in_100000_is_the_highest_bar() -> None:
    values = np.full(100_000, 2.0)
    values[61_234] = 50
    line = course(np.arange(1, 100_001), values, 72)
    assert line.count("█") == 1 and line.index("█") == 61_234 * 72 // 100_000


@pytest.fixture
def spiked(make: Any) -> Any:
    """A run and its diagnosis, with a name no terminal has room for."""
    name = "model.decoder." + ".".join(f"layers.{i}.wrapped_module" for i in range(8)) + ".self_attn.q_proj.weight"
    spike = make.finding(first_step=150, last_step=151, tensors=(name,), last_good_step=149, advice="Lower the rate to 0.001.")
    note = make.finding(rule="SK501", name="vanishing-gradient", severity=Severity.INFO, first_step=40, last_step=200)
    outcomes = (
        make.outcome("SK201", "loss-spike", Status.FOUND, "", spike),
        make.outcome("SK501", "vanishing-gradient", Status.FOUND, "", note),
    )
    losses = [4 - 0.01 * step + (6 if step in (150, 151) else 0) for step in range(1, 201)]
    return run_of(losses), make.diagnosis(*outcomes, steps=200)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_report_at_a_width(draw: Any, spiked: Any, width: int, root: Any) -> None:
    run, diagnosis = spiked
    printed = draw(report, diagnosis, run=run, width=width)
    assert printed == (root / "tests" / "report" / f"report_{width}.txt").read_text(encoding="utf-8")
    lines = printed.splitlines()
    assert all(len(line) <= width for line in lines[1:] if not line.startswith("runs/a:"))
    bars, marks = lines[2], lines[3]
    begins = min(place for place, character in enumerate(bars) if character in BARS)
    wide = sum(character in BARS for character in bars)
    assert [marks.index("○") - begins, marks.index("▲") - begins] == [39 * wide // 200, 149 * wide // 200]
    assert bars[marks.index("▲")] == "█"


def test_no_colour_when_it_is_piped_and_colour_when_it_is_not(draw: Any, spiked: Any) -> None:
    run, diagnosis = spiked
    assert "\x1b" not in draw(report, diagnosis, run=run)
    assert "\x1b[1;33m▲" in draw(report, diagnosis, run=run, colours=True)


def test_a_log_without_a_loss_has_no_line_and_one_of_nan_says_so(draw: Any, make: Any) -> None:
    bare = RunLog.from_arrays([1, 2, 3], {"grad_norm": [1.0, 2.0, 3.0]})
    assert "loss" not in draw(report, make.diagnosis(make.outcome("SK201", "spike")), run=bare)
    broken = run_of([math.nan] * 30)
    assert "loss nan " + BROKEN * 30 + " nan" in draw(report, make.diagnosis(make.outcome("SK201", "spike")), run=broken)


def test_a_long_name_keeps_its_ends() -> None:
    assert shortened("blocks.0.qkv.weight") == "blocks.0.qkv.weight"
    long = "model." + ".".join(f"layers.{i}" for i in range(30)) + ".self_attn.q_proj.weight"
    assert len(shortened(long)) <= 60
    assert shortened(long).startswith("model.layers.0.") and shortened(long).endswith(".self_attn.q_proj.weight")
    assert len(shortened("n" * 5000)) <= 60 and "…" in shortened("n" * 5000)
