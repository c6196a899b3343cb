"""The recorders never make training wait: whatever would read a tensor's value raises inside them.

On a GPU every such read is a synchronisation. Here, on the CPU, the reads are made to raise, and two are let through: the one
batch a step, and counters and hyperparameters that live on the host anyway.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import stabkit
from stabkit.hooks import forward, transfer
from stabkit.hooks.monitor import Monitor
from tests.cases.wiring.loop import IMPLEMENTATIONS, Loop
from tests.optimizers.handmade import CourseAdamW

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__")
LET_THROUGH = {transfer._together.__code__, transfer.host_number.__code__}


class Watchdog:
    """Counts transfers, and raises where a recorder reads a tensor in any other way."""

    def __init__(self) -> None:
        self.inside = 0
        self.transfers = 0
        self.reads: list[str] = []

    def guard(self, name: str, original: Any) -> Any:
        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            if self.inside and caller.f_code not in LET_THROUGH:
                self.reads.append(f"{name} at {Path(caller.f_code.co_filename).name}:{caller.f_lineno}")
                raise AssertionError(f"Tensor.{name} inside a recorder")
            self.transfers += self.inside and caller.f_code is transfer._together.__code__
            return original(tensor, *args, **kwargs)

        return read


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watchdog]:
    dog = Watchdog()
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, dog.guard(name, getattr(torch.Tensor, name)))
    receive = Monitor.receive

    def received(self: Monitor, event: str, *details: Any) -> None:
        dog.inside += 1
        try:
            receive(self, event, *details)
        finally:
            dog.inside -= 1

    monkeypatch.setattr(Monitor, "receive", received)
    tell = forward._tell

    def told(act: Callable[[forward.Forward], None]) -> None:
        dog.inside += 1
        try:
            tell(act)
        finally:
            dog.inside -= 1

    monkeypatch.setattr(forward, "_tell", told)
    yield dog
    monkeypatch.undo()


LOOPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unclipped": {"clip": ""},
    "accumulated": {"micro_batches": 3},
    "zeroed in place": {"to_none": False},
    "never zeroed": {"zero": ""},
    "scaled": {"scaler": True},
    "scaled, skipping": {"scaler": True, "overflows": (3, 4)},
    "scaled, accumulated, unclipped": {"scaler": True, "micro_batches": 2, "clip": ""},
    "clipped with the scale on": {"scaler": True, "unscale": False},
    "scheduled": {"scheduler": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)},
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", LOOPS)
def test_nothing_is_read_and_one_batch_a_step_is_brought(
    name: str, implementation: str, watchdog: Watchdog, tmp_path: Path
) -> None:
    run = Loop(implementation=implementation, **LOOPS[name]).run(tmp_path)
    assert watchdog.reads == []
    assert not [event for event in run.events if event["event"] == "fault"]
    assert watchdog.transfers == len(run.steps) == 8
    assert run.has("loss") and run.has("grad_norm_used", "tensor")


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, foreach=True)


def train(
    options: dict[str, Any], change: Callable[[nn.Module], Any], logdir: Path, make: Callable[[Any], Any] = adamw
) -> stabkit.RunLog:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    change(model)
    optimizer = make(model.parameters())
    dtype = next(model.parameters()).dtype
    with stabkit.watch(model, optimizer, logdir, tensorboard=False, **options):
        for _ in range(4):

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = F.mse_loss(model(torch.randn(4, 8, dtype=dtype)), torch.randn(4, 4, dtype=dtype))
                loss.backward()
                nn.utils.clip_grad_value_(model.parameters(), 0.1)
                return loss

            optimizer.step(closure)
    return stabkit.load(logdir)


OTHERS: dict[str, tuple[dict[str, Any], Callable[[nn.Module], Any]]] = {
    "exact updates": ({"exact_updates": True}, lambda model: None),
    "every other step": ({"every": 2}, lambda model: None),
    "16-bit weights": ({}, lambda model: model.to(torch.bfloat16)),
    "a transposed weight": ({}, lambda model: setattr(model[0].weight, "data", model[0].weight.data.t().contiguous().t())),
    "a frozen layer": ({}, lambda model: model[0].requires_grad_(False)),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_nor_with_a_closure_and(name: str, watchdog: Watchdog, tmp_path: Path) -> None:
    options, change = OTHERS[name]
    run = train(options, change, tmp_path)
    assert watchdog.reads == []
    assert not [event for event in run.events if event["event"] == "fault"]
    assert watchdog.transfers <= len(run.steps) + 1 == 5  # with the record of the weights at entry


class Attending(nn.Module):
    """Two attentions, one by torch's function and one by torch's module, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.attention, self.head = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.query(x)
        x = x + F.scaled_dot_product_attention(query, query, x)
        output: torch.Tensor = self.head(self.attention(x, x, x)[0])
        return output


def test_nor_by_looking_at_the_forward_pass(watchdog: Watchdog, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attending()
    optimizer = adamw(model.parameters())
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False, forward=True):
        for _ in range(4):
            for _ in range(2):
                F.cross_entropy(model(torch.randn(3, 5, 8)).mT, torch.randint(4, (3, 5)), ignore_index=2).backward()
            optimizer.step()
            optimizer.zero_grad()
    run = stabkit.load(tmp_path)
    assert watchdog.reads == []
    assert not [event for event in run.events if event["event"] in ("fault", "not_looked_at")]
    assert watchdog.transfers <= len(run.steps) + 1 == 5  # the logits come in the batch that all else comes in
    assert run.table("attention_logit_bound").values.shape == (4, 2) and run.has("output_log_partition")


MAKES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "foreach nesterov": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True, foreach=True),
    "Adadelta": lambda parameters: torch.optim.Adadelta(parameters),
    "an Adam by hand, on trial": lambda parameters: CourseAdamW(parameters, lr=1e-3),
}


@pytest.mark.parametrize("name", MAKES)
def test_nor_with_another_optimizer(name: str, watchdog: Watchdog, tmp_path: Path) -> None:
    run = train({}, lambda model: None, tmp_path, MAKES[name])
    assert watchdog.reads == []
    assert not [event for event in run.events if event["event"] == "fault"]
    assert watchdog.transfers <= len(run.steps) + 1 == 5
    assert run.has("update_ratio", "tensor")


def test_the_watchdog_bites(watchdog: Watchdog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Monitor._on_step_end

    def reading(self: Monitor, stepping: Any, skipped: bool = False) -> None:
        stepping.param_groups[0]["params"][0].sum().item()
        seen(self, stepping, skipped)

    monkeypatch.setattr(Monitor, "_on_step_end", reading)
    run = Loop().run(tmp_path)
    assert watchdog.reads and watchdog.reads[0].startswith("item at test_no_sync.py")
    assert next(event["where"] for event in run.events if event["event"] == "fault") == "step_end"
