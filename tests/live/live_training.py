"""Small real trainings that are judged while they go on, in this process or another."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stabkit
from stabkit.finding import Finding

BAD = 60
"""The step whose loss is NaN, where a training is to have one."""


def train(
    logdir: Path,
    steps: int = 100,
    on_finding: Callable[[Finding], Any] | None = None,
    bad: int = 0,
    until: Callable[[int], bool] = lambda step: False,
    pause: float = 0.0,
    batches: DataLoader[Any] | None = None,
    watched: bool = True,
) -> dict[str, torch.Tensor]:
    """The weights after so many steps, or after the one that `until` said was the last."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = iter(batches) if batches else None
    if not watched:
        loop(model, optimizer, steps, bad, until, pause, data)
        return dict(model.state_dict())
    with stabkit.watch(model, optimizer, logdir, tensorboard=False, on_finding=on_finding):
        loop(model, optimizer, steps, bad, until, pause, data)
    return dict(model.state_dict())


def loop(model: nn.Module, optimizer: Any, steps: int, bad: int, until: Any, pause: float, data: Any) -> None:
    """The loop alone, as a user has it."""
    for step in range(1, steps + 1):
        inputs = next(data)[0] if data else torch.randn(16, 4)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        if step == bad:
            loss = loss * torch.nan
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(pause)
        if until(step):
            break


def loader(context: str | None = None) -> DataLoader[Any]:
    """The same data, from worker processes that are forked or spawned, or from this one."""
    data = TensorDataset(torch.randn(3200, 4, generator=torch.Generator().manual_seed(1)))
    return DataLoader(data, batch_size=16, num_workers=2 if context else 0, multiprocessing_context=context)


def told_codes(findings: list[Finding]) -> set[str]:
    """The rules that found something, consequences included."""
    return {finding.rule for finding in findings} | {c.rule for finding in findings for c in finding.consequences}


def children() -> set[int]:
    """The judging processes that this one has started and not waited for."""
    found = set()
    for task in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        found |= {int(pid) for pid in task.read_text().split()}
    return {pid for pid in found if b"stabkit.live.child" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def alive(pid: int) -> bool:
    """Whether there is such a process, other than one that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def train_for_long(logdir: str, pipe: Any, workers: bool) -> None:
    """Train until killed; tells the pipe which process judges the run, as soon as it has told something."""
    data = loader("fork") if workers else None
    on_finding = lambda finding: pipe.send(min(children()))  # noqa: E731
    train(Path(logdir), 200 if workers else 100_000, on_finding, bad=5, pause=0.5 if workers else 0.02, batches=data)
