"""Fixtures of the run log's tests: records without a training, and processes that start fast."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stabkit.metric import TENSOR_COLUMNS
from stabkit.runlog import Group, Layout, RunWriter, StepRecord, TensorInfo


def layout_of(*names: str, groups: int = 1, **about: Any) -> Layout:
    """A layout of tensors with two elements each."""
    return Layout(tuple(TensorInfo(name, (2,)) for name in names), groups, "AdamW", **about)


def record(step: int, attempt: int = 0, layout: int = 0, tensors: int | None = 2, groups: int = 1, **about: Any) -> StepRecord:
    """A record whose numbers depend on the step: loss 100 - step; tensor i holds step + i / 10 in every column."""
    columns = None
    if tensors is not None:
        columns = np.repeat(step + np.arange(tensors)[:, None] / 10, len(TENSOR_COLUMNS), axis=1)
    group = tuple(Group(lr=1e-3 * (i + 1)) for i in range(groups))
    about = {"loss": 100.0 - step, "loss_reduction": 1, "time": 1e9 + step + 1000 * attempt} | about
    return StepRecord(step, attempt, layout, groups=group, tensors=columns, **about)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write steps of one attempt into a log: write(steps, name="run", count=0, **about the records)."""

    def write(steps: Any, name: str = "run", count: int = 0, segment_steps: int = 4096, **about: Any) -> Path:
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
    context.set_forkserver_preload(["runlog_training"])
    return context
