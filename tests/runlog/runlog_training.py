"""Small real trainings that the tests record, kill and resume, in this process or another."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import stabkit
from stabkit.runlog import RunWriter

torch.set_num_threads(1)


def make(seed: int = 0, width: int = 8) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model with its AdamW."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None = 1.0) -> None:
    """One training step on random data."""
    data = torch.randn(16, 4)
    optimizer.zero_grad()
    (model(data) - data.sum(1, keepdim=True)).square().mean().backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


@contextmanager
def small_segments(steps: int) -> Iterator[None]:
    """Make `stabkit.watch` write segments of so many steps."""

    module: Any = importlib.import_module("stabkit.watch")
    module.RunWriter = functools.partial(RunWriter, segment_steps=steps)
    try:
        yield
    finally:
        module.RunWriter = RunWriter


def train(logdir: Path, steps: int, between: Callable[[int], None] = lambda done: None, **options: Any) -> dict[str, Any]:
    """A watched training; returns what a checkpoint of its end holds."""
    model, optimizer = make()
    with stabkit.watch(model, optimizer, logdir, tensorboard=False, **options):
        for done in range(1, steps + 1):
            step(model, optimizer)
            between(done)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def train_and_tell(logdir: str, segment_steps: int, tell: Any) -> None:
    """Train for ever; send the number of each step to a pipe as soon as `optimizer.step` is over."""
    with small_segments(segment_steps):
        train(Path(logdir), 10**9, lambda done: tell.send(done))


def train_so_many(logdir: str, steps: int, meet: Any, where: Any) -> None:
    """Train when the other process is ready too; send the directory that was recorded into."""
    model, optimizer = make()
    with stabkit.watch(model, optimizer, logdir, tensorboard=False) as watching:
        meet.wait()
        for _ in range(steps):
            step(model, optimizer)
        meet.wait()
        where.put(str(watching.logdir))


def train_with_fork(logdir: str, steps: int) -> None:
    """Fork in the middle: the child steps, logs and leaves the `with`, as a careless data loader might."""
    model, optimizer = make()
    child = None
    with stabkit.watch(model, optimizer, logdir, tensorboard=False) as watching:
        for done in range(1, steps + 1):
            step(model, optimizer)
            watching.log(val_loss=float(done))
            if done == steps // 2:
                child = os.fork()
                if child == 0:
                    for _ in range(3):
                        step(model, optimizer)
                        watching.log(val_loss=-1.0)
                    watching.mark("from the child")
                    break
                os.waitpid(child, 0)
    if child == 0:
        os._exit(0)
