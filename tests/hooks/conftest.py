"""Shared by the tests of the recorders: one thread, fixed seeds, and a log that must be free of faults."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stabkit


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """One thread, so that bits can be compared; the same random numbers for every test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    yield
    torch.set_num_threads(threads)


Watching = Callable[..., Any]


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def watching(logdir: Path) -> Watching:
    """`stabkit.watch` into the test's own directory."""

    def watch(model: Any, optimizer: Any = None, **options: Any) -> Any:
        return stabkit.watch(model, optimizer, logdir, **{"tensorboard": False, **options})

    return watch


@pytest.fixture
def read(logdir: Path) -> Callable[..., Any]:
    """Loads the log; a fault of the recorder in it fails the test."""

    def load(**options: Any) -> Any:
        run = stabkit.load(logdir, **options)
        faults = [event for event in run.events if event["event"] == "fault"]
        assert not faults, faults
        return run

    return load
