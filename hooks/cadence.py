"""Decides which steps have their tensors measured: every n-th, and with a budget only as many as it pays for.

The budget is a share of the time that training takes. Each step earns that share of its own duration; everything stabkit does
on the training's thread spends it; tensors are measured when what is left pays for that. Step records are written always, so no
spike of loss or norm is lost between two measured steps. The first steps, and those after one that stands out, are measured in
any case, as far as a debt of `_DEBT` such steps; later steps pay it back.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

from stabkit.runlog import StepRecord

__all__ = ["Cadence"]

_CLOSELY = 64
"""Steps that are measured one and all after one that stands out, and at the start."""
_DEBT = 64
_LONGEST = 1000
"""However dear measuring is, it is done once in so many steps."""
_USUAL, _LEAST = 64, 8
_FACTOR = 4.0
_TELL = 256
"""Steps between two notes on how many are measured."""


class Cadence:
    """The steps of one optimizer.

    Args:
        every: At most every n-th step is measured.
        budget: The share of the time that may be spent, None for any.
        clock: Seconds.

    Attributes:
        news: What a log should be told, until somebody takes it: of every how many steps tensors were measured of late, and
            which share of the time was spent.
    """

    def __init__(self, every: int = 1, budget: float | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._every, self._budget, self._clock = every, budget, clock
        self.news: dict[str, float] | None = None
        self._credit = self._cost = 0.0
        self._spent = self._spent_in_step = self._elapsed = 0.0
        self._last: float | None = None
        self._closely = _CLOSELY  # so many more steps are measured in any case
        self._waited = 0
        self._measured = False
        self._usual: dict[str, deque[float]] = {name: deque(maxlen=_USUAL) for name in ("loss", "grad_norm", "grad_norm_used")}
        self._window: deque[bool] = deque(maxlen=_TELL)
        self._steps = 0

    def due(self, step: int) -> bool:
        """Whether to measure the tensors of a step that is about to be taken; to be asked once."""
        fits = (step - 1) % self._every == 0
        if self._budget is None:
            return fits
        self._account(self._budget)
        if not fits:
            return False
        self._waited += 1
        self._measured = self.affordable or self._waited >= _LONGEST
        if self._measured:
            self._waited = 0
        return self._measured

    @property
    def affordable(self) -> bool:
        """Whether what was left at the last look pays for measuring a step."""
        closely = self._closely > 0 and self._credit > -_DEBT * self._cost
        return self._budget is None or closely or self._credit >= self._cost

    def spend(self, seconds: float) -> None:
        """So much was spent on the training's thread."""
        self._spent_in_step += seconds

    def _account(self, budget: float) -> None:
        """A step is over and another begins."""
        now, spent = self._clock(), self._spent_in_step
        if self._last is not None:
            took = now - self._last
            if self._measured:
                self._cost = 0.75 * self._cost + 0.25 * spent if self._cost else spent
            self._credit = min(self._credit + budget * took - spent, self._cost)
            self._spent, self._elapsed = self._spent + spent, self._elapsed + took
            self._closely = max(0, self._closely - 1)
            self._window.append(self._measured)
            self._steps += 1
            if self._steps % _TELL == 0:
                self.news = {"every": round(_TELL / max(sum(self._window), 1), 1), "share": self._spent / self._elapsed}
                self._spent = self._elapsed = 0.0
        self._last, self._spent_in_step, self._measured = now, 0.0, False

    def saw(self, record: StepRecord) -> None:
        """A record is complete: one that stands out calls for a close look at what follows."""
        if self._budget is None:
            return
        out = [_stands_out(getattr(record, name), usual) for name, usual in self._usual.items()]
        if record.skipped or any(out) or (record.loss_reduction and math.isnan(record.loss)):
            self._closely = _CLOSELY


def _stands_out(value: float, usual: deque[float]) -> bool:
    """Whether a number is far above what is usual, of which it becomes a part; NaN stands for one that was not measured."""
    if math.isnan(value):
        return False
    level = statistics.median(usual) if len(usual) >= _LEAST else math.inf
    usual.append(value)
    return value > _FACTOR * level > 0 or math.isinf(value)
