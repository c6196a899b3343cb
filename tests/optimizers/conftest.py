"""One thread, so that bits can be compared, and a place for a log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """One thread; the random numbers of others are left as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    return tmp_path / "run"
