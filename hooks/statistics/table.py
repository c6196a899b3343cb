"""All tensors of an optimizer in one look from C, and the two passes over what it found.

For the case that is nearly every case: plain float32 tensors on the CPU. What C cannot read by itself (`look` says so) goes
through `TensorState`, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from stabkit.hooks.statistics import cpu
from stabkit.hooks.statistics.native import ROW_DTYPE, finder
from stabkit.hooks.statistics.team import parallel

if TYPE_CHECKING:
    from stabkit.hooks.statistics import AdamStep

__all__ = ["Table"]

Mask = NDArray[np.bool_]

_NUMBERS = ["step_size", "decay", "bias", "eps", "sign", "beta1"]
_NAMES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class Table:
    """Where the tensors of one step lie. Good for that step: what was found is held, and nothing is kept after it.

    Args:
        parameters: The optimizer's; a list.
        state: The optimizer's state.

    Attributes:
        rows: One `Row` for each parameter.
        copies: Of parameters from before the step, by their places.
    """

    def __init__(self, parameters: list[torch.Tensor], state: Mapping[torch.Tensor, Any]) -> None:
        self._parameters, self._state = parameters, state
        self.rows = np.zeros(len(parameters), ROW_DTYPE)
        self._signatures = np.zeros((len(parameters), 2), np.int64)
        self._counts = np.full(len(parameters), np.nan)
        self._held: list[Any] = []
        self.copies: dict[int, torch.Tensor] = {}

    def look(self, moments: int) -> bool:
        """Find them, anew before each pass, with the first of the moments or with all: whether C can read all that is there."""
        if finder is None or cpu.native is None or not isinstance(self._state, dict):
            return False
        held: list[Any] = []
        if not self._parameters:
            return False
        into = (self.rows.ctypes.data, self._signatures.ctypes.data, self._counts.ctypes.data)
        found: bool = finder.look(self._parameters, self._state, _NAMES[:moments], *into, held)
        self._held = held  # what was found before is let go only now: a new gradient cannot be mistaken for it
        for i, copy in self.copies.items():
            self.rows["before"][i] = copy.data_ptr()
        return found

    @property
    def signatures(self) -> bytes:
        """Those of the gradients at the last look, as `hooks.signatures` has them."""
        return self._signatures.tobytes()

    @property
    def counts(self) -> list[float] | None:
        """The optimizer's count of steps of each tensor at the last look, as in `hooks.counting`; None where any is unknown."""
        return None if np.isnan(self._counts).any() else self._counts.tolist()

    def copy(self, place: int) -> None:
        """Keep a copy of a parameter for the pass after the step."""
        self.copies[place] = self._parameters[place].detach().clone(memory_format=torch.contiguous_format)

    def before(self, steps: Sequence[AdamStep], which: Mask | None = None) -> NDArray[np.float64]:
        """BEFORE_COLUMNS of all tensors, or of some."""
        return self._measured(cpu.native.before, steps, which, 3)

    def after(self, steps: Sequence[AdamStep], which: Mask | None = None) -> NDArray[np.float64]:
        """AFTER_COLUMNS of all tensors, or of some that lack nothing."""
        return self._measured(cpu.native.after, steps, which, 16)

    def step(self, steps: Sequence[AdamStep], which: Mask | None = None) -> NDArray[np.float64]:
        """Both, from what is there after the step (see `hooks.once`)."""
        return self._measured(cpu.native.step, steps, which, 19)

    @property
    def complete(self) -> bool:
        """Whether every tensor with a gradient has two moments."""
        rows = self.rows
        return bool(((rows["grad"] == 0) | ((rows["exp_avg"] != 0) & (rows["exp_avg_sq"] != 0))).all())

    def let_go(self) -> None:
        """The step is over."""
        self._held, self.copies = [], {}

    def _tell(self, steps: Sequence[AdamStep]) -> None:
        """Put the numbers of the steps into the rows. Tensors of a group share one step."""
        if all(map(is_, steps, repeat(steps[0]))):
            for name, number in zip(_NUMBERS, cpu.coefficients(steps[0]), strict=True):
                self.rows[name] = number
            return
        _, first, which = np.unique(np.array([*map(id, steps)]), return_index=True, return_inverse=True)
        numbers = np.array([cpu.coefficients(steps[i]) for i in first.tolist()])
        for name, column in zip(_NUMBERS, numbers.T, strict=True):
            self.rows[name] = column[which]

    def _measured(self, function: Any, steps: Sequence[AdamStep], which: Mask | None, width: int) -> NDArray[np.float64]:
        self._tell(steps)
        rows = self.rows if which is None else self.rows[which]
        out = np.empty((len(rows), width))
        function(rows.tobytes(), out.ctypes.data, torch.get_num_threads(), parallel)
        return out
