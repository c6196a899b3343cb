"""The trainings whose steps are timed, and what people put around them: stabkit, a loop of `.item()`, other packages."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

import stabkit
from stabkit.demo import GPT, standard_library_text

__all__ = ["CASES", "WATCHERS", "Case", "Training", "Watcher", "installed"]


@dataclass(frozen=True)
class Case:
    """A model and how much of it is timed.

    Attributes:
        name: Such as "3M, 8x128".
        make: Makes the model.
        batch: Sequences and tokens of each; (0, 0) for tensors without a network.
        warmup: Steps of a block that are not timed.
        steps: Steps of a block that are.
        seconds: How long all of it may take.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: tuple[int, int]
    warmup: int
    steps: int
    seconds: float


def gpt(width: int, layers: int, heads: int, context: int) -> Callable[[], nn.Module]:
    """A byte-level GPT as in the demo, with another context."""

    def make() -> nn.Module:
        model = GPT(width, layers, heads)
        model.position = nn.Embedding(context, width)
        return model

    return make


CASES = (
    Case("300 tiny tensors", lambda: nn.ParameterList(nn.Parameter(torch.randn(16)) for _ in range(300)), (0, 0), 25, 40, 70),
    Case("0.1M, 8x128", gpt(56, 2, 4, 128), (8, 128), 25, 20, 80),
    Case("3M, 8x128", gpt(256, 4, 4, 128), (8, 128), 3, 6, 120),
    Case("20M, 8x256", gpt(512, 6, 8, 256), (8, 256), 1, 2, 190),
    Case("124M, 2x64", gpt(1024, 10, 16, 64), (2, 64), 1, 2, 160),
)


class Training:
    """A case in training: fused AdamW, gradients clipped."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case, self.model = case, case.make()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
        self._text = standard_library_text()

    def step(self, watcher: Watcher) -> None:
        """One step; the watcher is told where it asks to be."""
        loss = self._loss()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        watcher.after_backward(loss)
        self.optimizer.step()
        watcher.after_step(loss)

    def _loss(self) -> torch.Tensor:
        sequences, length = self.case.batch
        if not sequences:
            return torch.cat([*self.model.parameters()]).square().mean()
        starts = torch.randint(len(self._text) - length - 1, (sequences, 1))
        rows = self._text[starts + torch.arange(length + 1)].long()
        return F.cross_entropy(self.model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


class Watcher:
    """Nothing: the bare loop. Others override what they need.

    Attributes:
        name: What it is called in the table.
        records: What it records, of which steps.
        package: What must be installed for it.
    """

    name, records, package = "bare", "nothing", ""

    @contextmanager
    def around(self, training: Training, folder: Path) -> Iterator[None]:
        """As long as the `with` lasts the training is watched; files go into the folder."""
        yield

    def after_backward(self, loss: torch.Tensor) -> None:
        """Gradients are there and clipped."""

    def after_step(self, loss: torch.Tensor) -> None:
        """The optimizer has stepped."""


class Stabkit(Watcher):
    """stabkit."""

    def __init__(self, name: str, records: str, **options: Any) -> None:
        self.name, self.records, self._options = name, records, options

    def around(self, training: Training, folder: Path) -> AbstractContextManager[Any]:  # type: ignore[override]
        return stabkit.watch(training.model, training.optimizer, folder, **self._options)


class Items(Watcher):
    """What tutorials show: a norm of every gradient and weight, read with `.item()`, into TensorBoard."""

    name, records = "`.item()` for each parameter", "2 norms of each tensor, loss; every step"

    @contextmanager
    def around(self, training: Training, folder: Path) -> Iterator[None]:
        self._named, self._step = dict(training.model.named_parameters()), 0
        with SummaryWriter(str(folder)) as self._writer:
            yield

    def after_backward(self, loss: torch.Tensor) -> None:
        self._step += 1
        self._writer.add_scalar("loss", loss.item(), self._step)
        for name, p in self._named.items():
            if p.grad is not None:
                self._writer.add_scalar(f"grad_norm/{name}", p.grad.norm().item(), self._step)
            self._writer.add_scalar(f"weight_norm/{name}", p.detach().norm().item(), self._step)


class TotalNorm(Watcher):
    """One number a step."""

    name, records = "`get_total_norm` only", "1 norm; every step"

    @contextmanager
    def around(self, training: Training, folder: Path) -> Iterator[None]:
        self._parameters, self.norms = list(training.model.parameters()), []
        yield

    def after_backward(self, loss: torch.Tensor) -> None:
        grads = [p.grad for p in self._parameters if p.grad is not None]
        self.norms.append(nn.utils.get_total_norm(grads).item())


class Ormas(Watcher):
    """ormas-monitor as its README shows it."""

    name, records, package = "ormas-monitor", "its defaults", "ormas-monitor"

    @contextmanager
    def around(self, training: Training, folder: Path) -> Iterator[None]:
        from ormas_monitor import Monitor

        self._monitor = Monitor(training.model, training.optimizer, out=folder, overwrite=True, verbose=False)
        try:
            yield
        finally:
            self._monitor.close()

    def after_backward(self, loss: torch.Tensor) -> None:
        self._monitor.step(loss)


class Trainscope(Watcher):
    """trainscope as its README shows it."""

    name, records, package = "trainscope", "its defaults", "trainscope"

    @contextmanager
    def around(self, training: Training, folder: Path) -> Iterator[None]:
        from trainscope import TrainScope
        from trainscope.core.config import TrainScopeConfig

        self._scope = TrainScope(training.model, training.optimizer, config=TrainScopeConfig(run_dir=str(folder))).attach()
        self._step = 0
        try:
            yield
        finally:
            self._scope.detach()

    def after_backward(self, loss: torch.Tensor) -> None:
        self._scope.step(loss.item(), batch_index=self._step)
        self._step += 1


class Torchmortem(Watcher):
    """torchmortem as its README shows it."""

    name, records, package = "torchmortem", "its defaults, in memory", "torchmortem"

    @contextmanager
    def around(self, training: Training, folder: Path) -> Iterator[None]:
        from torchmortem import Autopsy

        with Autopsy(training.model, optimizer=training.optimizer) as self._autopsy:
            yield

    def after_step(self, loss: torch.Tensor) -> None:
        self._autopsy.step(loss=loss.item())


class Gradsnitch(Watcher):
    """gradsnitch as its README shows it."""

    name, records, package = "gradsnitch", "loss, 1 norm, rate; in memory", "gradsnitch"

    @contextmanager
    def around(self, training: Training, folder: Path) -> Iterator[None]:
        import gradsnitch

        self._monitor, self._step = gradsnitch.watch(training.model, training.optimizer, check_every=50), 0
        yield

    def after_backward(self, loss: torch.Tensor) -> None:
        with redirect_stdout(io.StringIO()):
            self._monitor.log(self._step, loss.item())
        self._step += 1


WATCHERS: tuple[Watcher, ...] = (
    Stabkit("stabkit", "22 sums of each tensor, all of the step; every step"),
    Stabkit("stabkit, `every=10`", "the same of every 10th step, all of the step every step", every=10),
    Items(), TotalNorm(), Ormas(), Trainscope(), Torchmortem(), Gradsnitch(),
)  # fmt: skip


def installed(watcher: Watcher) -> str | None:
    """The version of the package, "" where none is needed, None where it is not installed."""
    with contextlib.suppress(PackageNotFoundError):
        return version(watcher.package) if watcher.package else ""
    return None
