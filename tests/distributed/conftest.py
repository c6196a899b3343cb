"""Two real processes on gloo, for the tests of distributed runs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed_training import be_rank, free_port

LIMIT = 90
"""Seconds after which processes that wait for each other are ended."""


@pytest.fixture(scope="session")
def processes() -> Any:
    """A multiprocessing context whose processes begin with torch imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "torch.distributed.tensor", "stabkit.watch"])
    return context


@pytest.fixture
def ranks(processes: Any) -> Callable[..., dict[int, Any]]:
    """Run `work(rank, *args)` in processes that form a group; what each returned, by rank. One that failed is not in it."""

    def run(work: Callable[..., Any], *args: Any, world: int = 2) -> dict[int, Any]:
        told, port = processes.Queue(), free_port()
        group = [processes.Process(target=be_rank, args=(rank, world, port, work, args, told)) for rank in range(world)]
        for process in group:
            process.start()
        found: dict[int, Any] = {}
        while len(found) < world and any(process.is_alive() for process in group):
            try:
                found.update([told.get(timeout=0.05)])
            except Exception:
                continue
        for process in group:
            process.join(LIMIT)
            if process.is_alive():
                process.kill()
        while not told.empty():
            found.update([told.get()])
        return dict(sorted(found.items()))

    return run


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    return tmp_path / "run"
