"""Some elements of a weight from before a step, to see afterwards whether their bits have changed at all."""

from __future__ import annotations

import torch

from stabkit.hooks.statistics import TensorState
from stabkit.hooks.transfer import Batch
from stabkit.metric import TENSOR_COLUMNS, Array

__all__ = ["Bits"]

_ELEMENTS = 4096
"""About how many elements of a tensor are compared: the share is then known to a percent or two."""
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_COUNT, _SAMPLED = (
    [column.name for column in TENSOR_COLUMNS].index(name) for name in ("unchanged_count", "unchanged_sampled")
)


class Bits:
    """Elements of one parameter before a step.

    Args:
        place: Of the parameter, for whoever has several.
        param: The parameter; one that is complex, empty or not contiguous is not looked at.
    """

    def __init__(self, place: int, param: torch.Tensor) -> None:
        self.place = place
        self._before: torch.Tensor | None = None
        if param.numel() and param.is_contiguous() and not param.is_complex() and param.element_size() in _WHOLE:
            self._elements = slice(None, None, max(1, param.numel() // _ELEMENTS))
            self._before = param.detach().view(-1)[self._elements].clone()

    def compare(self, state: TensorState, batch: Batch, columns: Array) -> None:
        """Count, into a row of columns, the elements that had a gradient, and those of them whose bits did not change."""
        before, grad = self._before, state.grad
        if before is None or grad is None or grad.layout is not torch.strided or not grad.is_contiguous():
            return
        whole = _WHOLE[before.element_size()]
        now = state.param.detach().view(-1)[self._elements].clone()
        moved_by = grad.detach().view(-1)[self._elements] != 0
        same = now.view(whole) == before.view(whole)

        def fill(values: Array) -> None:
            columns[_COUNT], columns[_SAMPLED] = values

        batch.then(torch.stack([(same & moved_by).sum(), moved_by.sum()]), fill)
