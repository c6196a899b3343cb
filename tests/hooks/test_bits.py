"""A watched run gives, bit for bit, what an unwatched one gives."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from zoo import Net

import stabkit

IMPLEMENTATIONS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
VARIANTS: dict[str, dict[str, bool]] = {"plain": {}, "amsgrad": {"amsgrad": True}, "maximize": {"maximize": True}}
CLIPS: dict[str, Callable[[Net], Any]] = {
    "none": lambda model: None,
    "norm": lambda model: clip_grad_norm_(model.parameters(), 0.3),
    "value": lambda model: clip_grad_value_(model.parameters(), 0.02),
}
STEPS = 6


def bits(value: Any) -> Any:
    """Something that compares equal only where every bit is the same."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


def warmup_cosine(step: int) -> float:
    return (step + 1) / 3 if step < 2 else 0.5 * (1 + math.cos(math.pi * step / STEPS))


def by_hand(optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * warmup_cosine(step)


def train(
    logdir: Path | None,
    options: dict[str, Any],
    clip: str = "none",
    bf16: bool = False,
    accumulate: int = 1,
    handmade: bool = False,
    **watch: Any,
) -> Any:
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    model = Net()
    groups = [{"params": [p for p in model.parameters() if (p.dim() > 1) == matrices]} for matrices in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1, **options)
    watched = functools.partial(stabkit.watch, model, optimizer, logdir, **{"tensorboard": False, **watch})
    with watched() if logdir else contextlib.nullcontext():
        scheduler = None if handmade else torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine)
        for step in range(STEPS):
            if handmade:
                by_hand(optimizer, step)
            for _ in range(accumulate):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = model.loss() / accumulate
                loss.backward()
            CLIPS[clip](model)
            optimizer.step()
            last = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
            if scheduler:
                scheduler.step()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            random.random(), np.random.rand()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "gradients": last}
    return bits(state), bits(torch.get_rng_state()), random.getstate(), bits(list(np.random.get_state()))[1].tobytes()


def assert_invisible(logdir: Path, *args: Any, watch: dict[str, Any] | None = None, **kwargs: Any) -> None:
    assert train(None, *args, **kwargs) == train(logdir, *args, **kwargs, **(watch or {}))
    run = stabkit.load(logdir)
    assert len(run.steps) == STEPS
    assert not [event for event in run.events if event["event"] == "fault"]


@pytest.mark.parametrize(
    ("implementation", "variant", "clip"), list(itertools.product(IMPLEMENTATIONS, VARIANTS, CLIPS))
)
def test_watched_is_unwatched(logdir: Path, implementation: str, variant: str, clip: str) -> None:
    options = IMPLEMENTATIONS[implementation] | VARIANTS[variant]
    for i, (bf16, accumulate) in enumerate(itertools.product((False, True), (1, 2))):
        assert_invisible(logdir / str(i), options, clip, bf16, accumulate)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("watch", [{"exact_updates": True}, {"every": 3}, {"tensorboard": True}], ids=str)
def test_with_options(logdir: Path, implementation: str, watch: dict[str, Any]) -> None:
    assert_invisible(logdir, IMPLEMENTATIONS[implementation], "norm", accumulate=2, watch=watch)


def test_with_a_schedule_by_hand(logdir: Path) -> None:
    assert_invisible(logdir, {}, "norm", handmade=True)


def test_with_weights_so_small_that_they_are_copied(logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Net.__init__

    def tiny(self: Net, width: int = 8) -> None:
        original(self, width)
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(1e-9)

    monkeypatch.setattr(Net, "__init__", tiny)
    assert_invisible(logdir, {}, "value", accumulate=2)


def test_under_another_default_dtype_and_device(logdir: Path) -> None:
    """The user's contexts are neither left changed nor allowed to change what is recorded."""

    def run(where: Path | None) -> Any:
        torch.manual_seed(3)
        torch.set_default_dtype(torch.float64)
        try:
            model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)).float()
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
            watching = contextlib.nullcontext() if where is None else stabkit.watch(model, optimizer, where, tensorboard=False)
            with watching, torch.device("meta"):
                for _ in range(3):
                    with torch.autocast("cpu", torch.bfloat16):
                        loss = model(torch.randn(5, 4, dtype=torch.float32, device="cpu")).float().square().mean()
                        loss.backward()
                        clip_grad_norm_(model.parameters(), 0.1, foreach=False)
                        with torch.device("cpu"):
                            optimizer.step()
                        assert torch.is_autocast_enabled("cpu")
                        assert torch.get_autocast_dtype("cpu") is torch.bfloat16
                    assert torch.is_grad_enabled()
                    assert torch.get_default_dtype() is torch.float64
                    assert torch.zeros(1).is_meta
                    optimizer.zero_grad()
            assert not torch.zeros(1).is_meta
            return bits(model.state_dict()), bits(optimizer.state_dict())
        finally:
            torch.set_default_dtype(torch.float32)

    assert run(None) == run(logdir)
    read = stabkit.load(logdir)
    assert not [event for event in read.events if event["event"] == "fault"]
    assert np.isfinite(read.series("update_norm").values).all()


def test_grad_mode_is_left_as_it_was(watching: Any) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    with watching(model, optimizer):
        model(torch.ones(1, 2)).sum().backward()
        with torch.no_grad():
            optimizer.step()
            assert not torch.is_grad_enabled()
        with torch.enable_grad():
            optimizer.step()
            assert torch.is_grad_enabled()
        assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()
