"""What a monitor keeps of each optimizer it watches, and what stands in for one that is yet to be adopted."""

from __future__ import annotations

from typing import Any

import torch

from stabkit.hooks import optimizer
from stabkit.hooks.recorder import StepRecorder

__all__ = ["Undecided", "Watched"]


class Watched:
    """An optimizer with its recorder and its place in the log."""

    def __init__(self, index: int, recorder: StepRecorder) -> None:
        self.index = index
        self.recorder = recorder
        self.laid_out: optimizer.Roster | None = None  # the parameters that `layout` is about
        self.layout = -1
        self.attempt = -1
        self.step = 0
        self.count = -1
        self.stepped = False
        self.guarded = False  # whether a scaler is making its step


class Undecided:
    """Stands in for the optimizer that will be adopted, until its first step shows which it is."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self.param_groups = [{"params": parameters}]
        self.state: dict[torch.Tensor, Any] = {}
