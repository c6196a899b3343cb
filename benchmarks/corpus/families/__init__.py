"""The families of models: each a task that makes a model, a batch of a step, a loss, and a judgement of the trained model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from benchmarks.corpus.families.recurrent import Recurrent
from benchmarks.corpus.families.regression import Regression
from benchmarks.corpus.families.text import Text
from benchmarks.corpus.families.vision import Vision
from benchmarks.corpus.recipe import Recipe

__all__ = ["FAMILIES", "Batch", "Task"]

Batch = tuple[torch.Tensor, torch.Tensor]


class Task(Protocol):
    """What the training loop asks of a family."""

    def model(self) -> nn.Module:
        """A model, initialised from torch's global generator."""

    def batch(self, step: int) -> Batch:
        """Inputs and targets of a step, disturbed as the recipe says: the same for every run of the seed but for that."""

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The training loss, a scalar."""

    def held_out(self, model: nn.Module) -> float:
        """The loss on examples of the last step's distribution that were never trained on, undisturbed otherwise."""


FAMILIES: dict[str, Callable[[Recipe], Task]] = {
    "text": Text,
    "vision": Vision,
    "regression": Regression,
    "recurrent": Recurrent,
}
