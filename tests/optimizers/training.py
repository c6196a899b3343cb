"""Trains a small model with any optimizer, watched or not, and keeps what really happened, in float64."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import stabkit

STEPS = 8


class Model(nn.Module):
    """A small model of a kind.

    Args:
        kind: "mixed"; "matrices" only (Muon takes nothing else); "wide": with matrices large enough that 8-bit optimizers take
            eight bits for them; or "sparse" gradients only.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6, sparse=True) if kind == "sparse" else None
        width, bias = 2048 if kind == "wide" else 40, kind in ("mixed", "wide")
        middle = [nn.LayerNorm(width)] if bias else []
        self.body = nn.Sequential(nn.Linear(6, width, bias=bias), *middle, nn.Tanh(), nn.Linear(width, 3, bias=bias))
        if self.embed is not None:
            self.body.requires_grad_(False)

    def loss(self, generator: torch.Generator) -> Tensor:
        x = torch.randn(12, 6, generator=generator)
        if self.embed is not None:
            x = self.embed(torch.randint(6, (12,), generator=generator))  # some rows twice, some never
        return nn.functional.cross_entropy(self.body(x), torch.randint(3, (12,), generator=generator))


@dataclass(frozen=True)
class Entry:
    """An optimizer to be tried.

    Attributes:
        make: Makes it from parameters.
        kind: Of the model.
        closure: Whether a step needs one.
        settings: What the groups are set to before a step, if anything.
        derived: Whether its update is expected to be worked out from the state.
        second: v̂ from (state, beta2, count), where v̂ is expected to be recorded.
        needs: The package it comes from, where that is not torch.
    """

    make: Callable[[list[Tensor]], torch.optim.Optimizer]
    kind: str = "mixed"
    closure: bool = False
    settings: Callable[[int], dict[str, float]] | None = None
    derived: bool = False
    second: Callable[[dict[str, Any], float, int], Tensor] | None = None
    needs: str = ""


@dataclass
class Truth:
    """What happened, by step and tensor."""

    moved: list[list[float]] = field(default_factory=list)
    dot: list[list[float]] = field(default_factory=list)
    weight: list[list[float]] = field(default_factory=list)
    grad: list[list[float]] = field(default_factory=list)
    first: list[list[float]] = field(default_factory=list)
    second: list[list[float]] = field(default_factory=list)
    bits: Any = None

    def table(self, name: str) -> np.ndarray:
        return np.array(getattr(self, name), dtype=np.float64)


def wide(t: Tensor) -> Tensor:
    dense = t.detach().to_dense() if t.layout is not torch.strided else t.detach()
    return dense.to(torch.complex128 if t.is_complex() else torch.float64, copy=True)


def norm(t: Tensor) -> float:
    return float(wide(t).abs().square().sum().sqrt())


def bits(value: Any) -> Any:
    """Something that compares equal only where every bit is the same."""
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):  # a subclass made of other tensors
            return [bits(getattr(value, name)) for name in value.__tensor_flatten__()[0]]
        if value.layout is not torch.strided:
            return bits(value._indices()), bits(value._values()), value.is_coalesced()
        return str(value.dtype), tuple(value.shape), value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


def train(entry: Entry, logdir: Path | None = None, steps: int = STEPS, **watch: Any) -> Truth:
    """Train; returns what happened and the bits of all that a watched run must not change."""
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(6)
    model = Model(entry.kind)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = entry.make(parameters)
    truth = Truth()
    watching: Any = contextlib.nullcontext()
    if logdir is not None:
        watching = functools.partial(stabkit.watch, model, optimizer, logdir, **{"tensorboard": False, **watch})()
    with watching:
        for step in range(1, steps + 1):
            for group in optimizer.param_groups if entry.settings else ():
                group.update(entry.settings(step))
            _step(entry, model, optimizer, parameters, generator, truth)
    truth.bits = bits([
        list(parameters), [p.grad for p in parameters], optimizer.state_dict(), torch.get_rng_state(), generator.get_state()
    ])  # fmt: skip
    return truth


def _step(
    entry: Entry,
    model: Model,
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    generator: torch.Generator,
    truth: Truth,
) -> None:
    def compute() -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(torch.Generator().set_state(state) if entry.closure else generator)
        loss.backward()
        return loss

    state = generator.get_state()
    if not entry.closure:
        compute()
    before = [wide(p) for p in parameters]
    grads = [torch.zeros(()) if p.grad is None else wide(p.grad) for p in parameters]
    optimizer.step(compute if entry.closure else None)  # type: ignore[arg-type]
    if entry.closure:
        model.loss(generator)  # the next step has another batch
        grads = [wide(p.grad) for p in parameters]  # type: ignore[arg-type]
    moved = [wide(p) - b for p, b in zip(parameters, before, strict=True)]
    truth.moved.append([norm(m) for m in moved])
    truth.dot.append([float((b * m).sum()) for b, m in zip(before, moved, strict=True)])
    truth.weight.append([norm(b) for b in before])
    truth.grad.append([norm(g) for g in grads])
    kept = [optimizer.state.get(p) for p in parameters]
    states: list[dict[str, Any]] = [state if isinstance(state, dict) else {} for state in kept]
    first = [s.get("exp_avg", s.get("m")) for s in states]
    truth.first.append([norm(m) if type(m) is Tensor else np.nan for m in first])  # a subclass may hold eight bits
    if entry.second is not None:
        group = optimizer.param_groups[0]
        beta2 = float(group["betas"][1] if "betas" in group else group["beta2"])
        truth.second.append([float(entry.second(s, beta2, len(truth.moved)).double().mean()) for s in states])
