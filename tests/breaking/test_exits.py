"""However the process ends: its exit code and its weights are those of an unwatched one, and the log has every step."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from torch import nn

import stabkit

STEPS = 30


def end(way: str, logdir: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.breaking.exiting", way, str(logdir)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default::UserWarning"}
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, env=environment, timeout=120)


@cache
def unwatched() -> str:
    return end("bare", Path("none")).stdout


def check(way: str, code: int, error: str | None, logdir: Path) -> str:
    """What it said on stderr, once its code, weights and log are what they should be; error "-" where none is noted."""
    done = end(way, logdir)
    assert done.returncode == code, done.stderr
    assert done.stdout == unwatched()
    run = stabkit.load(logdir)
    assert run.steps.tolist() == list(range(1, STEPS + 1)) and not run.notes
    closed = [event["error"] for event in run.events if event["event"] == "close"]
    assert closed == ([] if error == "-" else [error])
    assert not [event for event in run.events if event["event"] == "fault"]
    return done.stderr


@pytest.mark.slow
def test_a_watch_that_is_never_left_is_closed_before_the_process_ends(tmp_path: Path) -> None:
    assert check("never left", 0, None, tmp_path / "run") == ""


@pytest.mark.slow
@pytest.mark.parametrize("way, code, error", [
    ("never left, with live verdicts", 0, None), ("sys.exit(3)", 3, "SystemExit"), ("os._exit(4)", 4, "-"),
    ("an exception", 1, "ValueError"), ("left at exit", 0, None), ("a daemon thread", 0, None),
])  # fmt: skip
def test_a_process_that_ends_in_an_unusual_way(way: str, code: int, error: str | None, tmp_path: Path) -> None:
    stderr = check(way, code, error, tmp_path / "run")
    assert "stabkit" not in stderr and "Exception ignored" not in stderr
    assert ("the user's own" in stderr) == (way == "an exception")


@pytest.mark.slow
def test_a_watch_that_nobody_holds_says_that_it_ends(tmp_path: Path) -> None:
    done = end("dropped", tmp_path / "run")
    assert done.returncode == 0 and done.stdout == unwatched()
    assert "nobody holds what stabkit.watch returned" in done.stderr


@pytest.mark.slow
def test_a_callback_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    """It is waited for ten seconds, and the log says so."""
    done = end("a callback that hangs", tmp_path / "run")
    assert done.returncode == 0 and done.stdout == unwatched()
    run = stabkit.load(tmp_path / "run")
    assert len(run.steps) == STEPS + 8
    assert [event["what"] for event in run.events if event["event"] == "live_fault"] == ["unfinished"]


def test_a_generator_of_the_users_that_is_closed_inside_is_no_dropped_watch(tmp_path: Path) -> None:
    def training() -> Iterator[int]:
        with stabkit.watch(nn.Linear(2, 2), logdir=tmp_path / "run"):
            yield 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = training()
        assert next(steps) == 1
        steps.close()
    events = stabkit.load(tmp_path / "run").events
    assert [event["error"] for event in events if event["event"] == "close"] == ["GeneratorExit"]
