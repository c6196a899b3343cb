"""What a monitor keeps of each optimizer it watches."""

from __future__ import annotations

from stabkit.hooks import optimizer
from stabkit.hooks.recorder import StepRecorder

__all__ = ["Watched"]


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
        self.refused = False  # whether its scaler was told to have refused a step
