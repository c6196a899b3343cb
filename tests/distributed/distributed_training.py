"""A small training, on one process or several, watched or not; the functions that the processes run."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode

import stabkit

STEPS = 6
BATCH = 8


class Net(nn.Module):
    """Layers of sizes that two processes cannot share out evenly, and a parameter that never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 7)
        self.norm = nn.LayerNorm(7)
        self.last = nn.Linear(7, 1)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.norm(self.first(x))))
        return found


class Collectives(TorchDispatchMode):
    """Counts every collective by the operator that starts it (CommDebugMode stumbles over FSDP's module hooks)."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:
            self.counts[str(func)] = self.counts.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))


def free_port() -> int:
    """A port that the system has just given out and taken back."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def be_rank(rank: int, world: int, port: int, work: Callable[..., Any], args: tuple[Any, ...], told: Any) -> None:
    """Be one process of a group, and tell what the work returned."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    result = work(rank, *args)
    told.put((rank, result))
    torch.distributed.destroy_process_group()


def batch(step: int, micro: int = 0) -> Tensor:
    """The joined batch of all processes."""
    return torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(1000 * micro + step))


def loss_of(model: nn.Module, data: Tensor) -> Tensor:
    return (model(data) - data.sum(1, keepdim=True)).square().mean()


def plain_model(unused: bool = True) -> nn.Module:
    """The same at every call."""
    torch.manual_seed(0)
    model = Net()
    if not unused:
        del model.unused
    return model


def optimizer_of(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, **options)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    logdir: str | None,
    rank: int = 0,
    world: int = 1,
    clip: Callable[[nn.Module], Any] = lambda model: clip_grad_norm_(model.parameters(), 0.5),
    steps: int = STEPS,
    micro: int = 1,
    quiet: Callable[[nn.Module], Any] = lambda model: contextlib.nullcontext(),
    data: Callable[[int, int], Tensor] = batch,
    before: Callable[[int], None] = lambda step: None,
    **watch: Any,
) -> list[float]:
    """Train on this process's part of every batch; returns its losses.

    Args:
        model: The model, wrapped or not.
        optimizer: Its optimizer.
        logdir: Where to record; None to train unwatched.
        rank: Which part of a batch.
        world: How many parts it has.
        clip: Called before each step.
        steps: How many.
        micro: Micro-batches a step.
        quiet: A context for all but the last of them, in which gradients are not synchronised.
        data: (step, micro-batch) -> the joined batch.
        before: Called before each step.
        watch: Options of `stabkit.watch`.
    """
    losses = []
    watched = stabkit.watch(model, optimizer, logdir, **{"tensorboard": False, **watch}) if logdir else contextlib.nullcontext()
    with watched:
        for step in range(1, steps + 1):
            before(step)
            total = 0.0
            for number in range(micro):
                own = data(step, number).chunk(world)[rank]
                with quiet(model) if number < micro - 1 else contextlib.nullcontext():
                    loss = loss_of(model, own) / micro
                    loss.backward()
                total += float(loss.detach())
            clip(model)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
    return losses
