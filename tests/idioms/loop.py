"""What an idiom trains with, and where it says what really happened."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stabkit

__all__ = ["STEPS", "Idiom", "Loop", "Step", "bits", "idiom", "loss_of"]

STEPS = 60
CLASSES = 3
INPUTS = 6


@dataclass
class Step:
    """What really happened in a step, kept without stabkit's help.

    Attributes:
        loss: The loss of the step; NaN where no backward call tells it.
        calls: How many times backward was called for it.
        lr: The rate of each group.
        norm: The norm of the gradient before clipping; NaN where only the loop itself could tell.
        used: The norm of the gradient that the optimizer was given.
        skipped: Whether a scaler passed it over.
    """

    loss: float
    calls: int
    lr: list[float]
    norm: float
    used: float
    skipped: bool


@dataclass
class Loop:
    """One training, watched or not.

    Args:
        logdir: Where to record; None trains unwatched.
        adopt: Leave it to stabkit to find the optimizers.
        options: Of every AdamW.

    Attributes:
        truth: The steps of each optimizer, in the order in which the log has them.
        result: The bits of what was trained.
    """

    logdir: Path | None
    adopt: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    truth: list[list[Step]] = field(default_factory=list)
    result: Any = None
    _optimizers: list[Any] = field(default_factory=list)

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """The same random numbers for every run, and one thread, so that bits can be compared."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        yield
        torch.set_num_threads(threads)

    def model(self, dropout: float = 0.0) -> nn.Module:
        """A small classifier."""
        return nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, CLASSES))

    def adamw(self, parameters: Any, lr: float = 3e-3, **options: Any) -> torch.optim.AdamW:
        """AdamW, fused or foreach as this run wants it."""
        return torch.optim.AdamW(parameters, lr=lr, **{**self.options, **options})

    def batches(self, count: int = STEPS, size: int = 16, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs with labels that can be learnt."""
        generator = torch.Generator().manual_seed(seed)
        teacher = torch.randn(INPUTS, CLASSES, generator=torch.Generator().manual_seed(7))
        for _ in range(count):
            x = torch.randn(size, INPUTS, generator=generator)
            yield x, (x @ teacher).argmax(1)

    @contextlib.contextmanager
    def watch(self, model: Any, optimizer: Any, **options: Any) -> Iterator[Any]:
        """`stabkit.watch`, the line under test; nothing where the run is unwatched."""
        self._optimizers = [] if self.adopt else list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
        self.truth += [[] for _ in self._optimizers[len(self.truth) :]]
        if self.logdir is None:
            yield None
            return
        given = None if self.adopt else optimizer
        with stabkit.watch(model, given, self.logdir, **{"tensorboard": False, **options}) as watch:
            yield watch

    def note(
        self,
        optimizer: Any,
        loss: Tensor | float,
        calls: int = 1,
        norm: Tensor | float | None = None,
        scale: float = 1.0,
        skipped: bool = False,
    ) -> None:
        """Say what is true of the step that is about to be made.

        Args:
            optimizer: Whose step.
            loss: Its loss.
            calls: How many times backward was called for it.
            norm: The norm of the gradient before clipping; None where it was not clipped.
            scale: What the gradient still carries of a loss scale.
            skipped: Whether the scaler will pass it over.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        values = [g.coalesce().values() if g.is_sparse else g for g in gradients]
        used = math.sqrt(sum(float(v.detach().to(torch.complex128).abs().square().sum()) for v in values)) / scale
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        before = used if norm is None else float(norm)
        self._of(optimizer).append(Step(float(torch.as_tensor(loss).detach()), calls, rates, before, used, skipped))

    def _of(self, optimizer: Any) -> list[Step]:
        place = next((i for i, known in enumerate(self._optimizers) if known is optimizer), None)
        if place is None:
            place = len(self._optimizers)
            self._optimizers.append(optimizer)
            self.truth += [[]] if place == len(self.truth) else []
        return self.truth[place]


Idiom = Callable[[Loop], Any]


def idiom(function: Idiom) -> Idiom:
    """Put a function into the corpus."""
    function.is_idiom = True  # type: ignore[attr-defined]
    return function


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss of a batch."""
    return F.cross_entropy(model(x).float(), y)


def bits(value: Any) -> Any:
    """Something that compares equal only where every bit is the same."""
    if hasattr(value, "state_dict"):
        return bits(value.state_dict())
    if isinstance(value, Tensor):
        value = value.detach().to_dense() if value.is_sparse else value.detach()
        raw = value.resolve_conj().contiguous().reshape(-1)
        return str(value.dtype), tuple(value.shape), raw.view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [bits(item) for item in value]
    return value if isinstance(value, (str, bytes, int, float, bool, type(None))) else None
