"""Fixtures of the run log's tests."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from runlog_records import layout_of, record

from stabkit.runlog import RunWriter


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write steps into a log below tmp_path, as one process does; `count` is the optimizer's, 0 begins an attempt."""

    def write(steps: Iterable[int], name: str = "run", count: int = 0, segment_steps: int = 4096, **about: Any) -> Path:
        writer = RunWriter(tmp_path / name, {"every": 1}, segment_steps=segment_steps)
        number = writer.layout(0, layout_of("a", "b"))
        attempt, _ = writer.begin_attempt(0, count)
        for step in steps:
            writer.write(0, record(step, attempt, number, **about))
        writer.close()
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def processes() -> Any:
    """A multiprocessing context whose processes begin with torch imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "stabkit.watch"])
    return context
