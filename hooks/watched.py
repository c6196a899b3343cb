"""What a monitor keeps of each optimizer it watches."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from stabkit.hooks import optimizer
from stabkit.hooks.reach import Reach
from stabkit.hooks.recorder import StepRecorder
from stabkit.hooks.roster import Roster
from stabkit.hooks.unfinished import Unfinished

__all__ = ["Watched"]


class Watched:
    """An optimizer with its recorder and its place in the log."""

    def __init__(self, index: int, recorder: StepRecorder) -> None:
        self.index = index
        self.recorder = recorder
        self.reach = Reach()
        self.laid_out: Roster | None = None  # the parameters that `layout` is about
        self.layout = -1
        self.attempt = -1
        self.step = 0
        self.count = -1
        self.unfinished: deque[Unfinished] = deque()  # records whose numbers are on their way from a device
        self.lost = 0  # how many were not taken along
        self.stepped = False
        self.refused = False  # whether its scaler was told to have refused a step

    def unreached(self, names: Mapping[int, tuple[str, ...]], last: bool = False) -> list[str]:
        """Names of its parameters that no gradient has reached (see `Reach`), given those of the model's parameters, by id."""
        found = self.reach.unreached(last)
        named = optimizer.names_of(self.recorder.optimizer, names, self.index) if found else {}
        return [named[id(p)][0] for p in found if id(p) in named]
