"""Some elements of a weight from before a step, to see afterwards whether their bits have changed at all."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stabkit.hooks.statistics import TensorState, device
from stabkit.hooks.transfer import Batch
from stabkit.metric import TENSOR_COLUMNS, Array

__all__ = ["Bits", "ManyBits", "bits_of"]

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

    def compare(self, states: Sequence[TensorState], batch: Batch, columns: Array) -> None:
        """Count, into its row of columns, the elements that had a gradient, and those of them whose bits did not change."""
        state, row = states[self.place], columns[self.place]
        before, grad = self._before, state.grad
        if before is None or grad is None or grad.layout is not torch.strided or not grad.is_contiguous():
            return
        whole = _WHOLE[before.element_size()]
        now = state.param.detach().view(-1)[self._elements].clone()
        moved_by = grad.detach().view(-1)[self._elements] != 0
        same = now.view(whole) == before.view(whole)

        def fill(values: Array) -> None:
            row[_COUNT], row[_SAMPLED] = values

        batch.then(torch.stack([(same & moved_by).sum(), moved_by.sum()]), fill)


class ManyBits:
    """The same of many parameters of one dtype on a device, in one launch before the step and one after it.

    Args:
        places: Of the parameters.
        kept: What keeps their elements.
    """

    def __init__(self, places: Sequence[int], kept: Any) -> None:
        self._places, self._kept = places, kept

    def compare(self, states: Sequence[TensorState], batch: Batch, columns: Array) -> None:
        """As `Bits.compare`, for all of them: into their rows of the columns."""
        params = [states[i].param for i in self._places]
        grads = [_readable(states[i]) for i in self._places]
        for kind in {grad.dtype for grad in grads if grad is not None}:
            mine = [grad if grad is not None and grad.dtype is kind else None for grad in grads]
            counts = device.compare(self._kept, params, mine)
            if counts is None:
                return
            batch.then(counts, functools.partial(self._fill, columns, [n for n, grad in enumerate(mine) if grad is not None]))

    def _fill(self, columns: Array, told: list[int], values: Array) -> None:
        columns[np.ix_([self._places[n] for n in told], [_COUNT, _SAMPLED])] = values.reshape(-1, 2)[told]


def bits_of(places: Sequence[int], states: Sequence[TensorState]) -> list[Bits | ManyBits]:
    """Elements of the parameters at some places: together where they lie on a device."""
    alike: dict[torch.dtype, list[int]] = {}
    for i in places:
        if device.on_device(states[i].param) and device.fits(states[i].param, states[i].param):
            alike.setdefault(states[i].param.dtype, []).append(i)
    found: list[Bits | ManyBits] = []
    together: set[int] = set()
    for group in alike.values():
        kept = device.keep([states[i].param for i in group], _ELEMENTS)
        if kept is not None:
            found.append(ManyBits(group, kept))
            together.update(group)
    return found + [Bits(i, states[i].param) for i in places if i not in together]


def _readable(state: TensorState) -> torch.Tensor | None:
    return state.grad if state.grad is not None and device.fits(state.grad, state.param) else None
