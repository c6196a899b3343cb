"""Two threads train at the same time: under a `watch` of each its own both logs are exact; under one it is refused, and said.

The trainings have random numbers of their own, so that each has the bits it has alone.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stabkit
from stabkit.watch import StabkitWarning
from tests.breaking.training import bits, patchable

STEPS = 40


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: nn.Sequential(nn.Linear(32, 96), nn.LayerNorm(96), nn.Tanh(), nn.Linear(96, 1)) for name in ("a", "b")}


def train(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, logdir: Path | None, go: Callable[[], Any]) -> None:
    chance = torch.Generator().manual_seed(ord(name))
    with stabkit.watch(model, optimizer, logdir) if logdir else nullcontext():
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7)
        go()
        for _ in range(STEPS):
            optimizer.zero_grad()
            for _ in range(2):
                (model(torch.randn(32, 32, generator=chance)).square().mean() / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            scheduler.step()


def both(folder: Path | None, at_once: bool) -> dict[str, Any]:
    """Train the two models; their bits."""
    made = models()
    go = threading.Barrier(2).wait if at_once else lambda: None
    threads = []
    for name, model in made.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        threads.append(threading.Thread(target=train, args=(name, model, optimizer, folder and folder / name, go)))
        threads[-1].start()
        if not at_once:
            threads[-1].join()
    for thread in threads:
        thread.join()
    return {name: bits(model.state_dict()) for name, model in made.items()}


def test_two_threads_each_with_a_watch_of_its_own(tmp_path: Path) -> None:
    """Every number of every step is the one it has where the two train one after the other."""
    alone, before = both(None, at_once=False), patchable()
    assert both(tmp_path / "one after the other", at_once=False) == alone
    assert both(tmp_path / "at once", at_once=True) == alone
    assert patchable() == before
    for name in ("a", "b"):
        run, other = (stabkit.load(tmp_path / when / name) for when in ("at once", "one after the other"))
        assert run.steps.tolist() == list(range(1, STEPS + 1)) and not run.notes
        assert not [event for event in run.events if event["event"] in ("fault", "unseen", "lost")]
        for kind in ("step_values", "group_values", "columns"):
            values, expected = getattr(run.stream, kind), getattr(other.stream, kind)
            assert set(values) == set(expected)
            for metric in set(values) - {"time"}:
                assert np.array_equal(values[metric], expected[metric], equal_nan=True), metric


def test_two_threads_under_one_watch_are_refused(tmp_path: Path) -> None:
    """What belongs to which step cannot be told: nothing is recorded from where they are seen at once, and the log says why."""
    alone, before = both(None, at_once=False), patchable()
    made = models()
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-2) for name, model in made.items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with stabkit.watch(made, list(optimizers.values()), tmp_path / "run"):
            go = threading.Barrier(2).wait
            threads = [threading.Thread(target=train, args=(n, made[n], optimizers[n], None, go)) for n in made]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert {name: bits(model.state_dict()) for name, model in made.items()} == alone
    assert patchable() == before
    told = [str(warning.message) for warning in caught if issubclass(warning.category, StabkitWarning)]
    assert len([text for text in told if "let each enter one of its own" in text]) == 1
    faults = [event for event in stabkit.load(tmp_path / "run").events if event["event"] == "fault"]
    assert len(faults) == 1 and faults[0]["stopped"] and "two threads" in faults[0]["error"]


def test_a_watch_entered_here_while_another_thread_trains(tmp_path: Path) -> None:
    """One thread, wherever it is, trains what is watched."""
    made = models()
    optimizer = torch.optim.AdamW(made["a"].parameters(), lr=1e-2)
    with stabkit.watch(made["a"], optimizer, tmp_path / "run"):
        thread = threading.Thread(target=train, args=("a", made["a"], optimizer, None, lambda: None))
        thread.start()
        thread.join()
    run = stabkit.load(tmp_path / "run")
    assert run.steps.tolist() == list(range(1, STEPS + 1))
    assert np.isfinite(run.series("loss").values).all() and np.isfinite(run.series("clip_coefficient").values).all()
