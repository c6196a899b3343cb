"""The fallback on a device: tensors of one size are stacked, and each operation of torch then serves all of them.

Networks repeat themselves, so there are few sizes. A stack holds about a million elements; a tensor larger than that is taken
in pieces, as `reference` takes every tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stabkit.hooks.statistics import rows
from stabkit.hooks.transfer import Number

if TYPE_CHECKING:
    from stabkit.hooks.statistics import AdamStep, TensorState

__all__ = ["columns_of"]

ELEMENTS = 1_000_000
"""Of a stack: 8 MB for each of some ten temporaries."""


def columns_of(mode: str, states: Sequence[TensorState], steps: Sequence[AdamStep]) -> tuple[Tensor, list[int]]:
    """The columns of tensors that agree in types and device, each of which fills its stretch of memory without gaps.

    Args:
        mode: "before", "after" or "step".
        states: One per tensor, none of them empty.
        steps: One per tensor.

    Returns:
        float64 [len(states), columns] on the device, and which tensor each row is of. Columns that lack a tensor hold anything.
    """
    alike: dict[Any, list[int]] = {}
    for i, (state, step) in enumerate(zip(states, steps, strict=True)):
        absent = tuple(tensor is None for tensor in (*_tensors(state, mode), state.count, state.lr))
        alike.setdefault((state.param.numel(), id(step), absent), []).append(i)
    order: list[int] = []
    found: list[Tensor] = []
    with torch.no_grad():
        for (size, *_), places in alike.items():
            many = max(1, ELEMENTS // size)
            for some in (places[a : a + many] for a in range(0, len(places), many)):
                order += some
                found.append(_columns(mode, [states[i] for i in some], steps[some[0]]))
        return torch.cat(found), order


def _columns(mode: str, states: Sequence[TensorState], step: AdamStep) -> Tensor:
    taken = rows.Taken(step, _number([s.count for s in states], step.count), _number([s.lr for s in states], step.lr))
    if mode == "before":
        table = torch.stack([rows.before(*piece) for piece in _pieces(states, mode)]).sum(dim=0)
        return _turned(table, step)
    if mode == "after":
        return _known(rows.merge([rows.after(taken, *piece) for piece in _pieces(states, mode)]), taken)
    both = [(rows.before_of_after(taken, *piece), rows.after(taken, *piece)) for piece in _pieces(states, mode)]
    before = _turned(torch.stack([one for one, _ in both]).sum(dim=0), step)
    return torch.cat([before, _known(rows.merge([other for _, other in both]), taken)], dim=1)


def _turned(before: Tensor, step: AdamStep) -> Tensor:
    """Σgm of -g where the optimizer maximizes."""
    if step.maximize:
        before[:, 1].neg_()
    return before


def _known(after: Tensor, taken: rows.Taken) -> Tensor:
    """NaN in what needs the bias correction of v where no step was counted, and in extremes where no element was finite."""
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=after.device)
    after[:, 6:8] = torch.where(after[:, 6:7] <= after[:, 7:8], after[:, 6:8], nothing)
    bias = taken.bias2
    if isinstance(bias, Tensor):
        after[:, 5:10] = torch.where(bias > 0, after[:, 5:10], nothing)
        after[:, 12:15] = torch.where(bias > 0, after[:, 12:15], nothing)
    return after


def _number(tensors: Sequence[Tensor | None], number: float) -> Number:
    """One number of a step for all the rows: from the device where it is there, [rows, 1]."""
    there = [tensor.detach().reshape(()) for tensor in tensors if tensor is not None]
    return torch.stack(there).to(torch.float64).reshape(-1, 1) if there else number


def _pieces(states: Sequence[TensorState], mode: str) -> Iterator[list[Tensor | None]]:
    """Stacks of the same stretch of all the tensors, float64 [tensors, elements]."""
    size = states[0].param.numel()
    columns = [[_flat(tensor) for tensor in column] for column in zip(*(_tensors(s, mode) for s in states), strict=True)]
    for start in range(0, size, ELEMENTS):
        stop = min(size, start + ELEMENTS)
        yield [_stack([x[start:stop] for x in column if x is not None]) for column in columns]


def _stack(tensors: Sequence[Tensor]) -> Tensor | None:
    return torch.stack([*tensors]).to(torch.float64) if tensors else None


def _tensors(state: TensorState, mode: str) -> tuple[Tensor | None, ...]:
    if mode == "before":
        return state.param, state.grad, state.exp_avg
    return state.param, state.grad, state.exp_avg, state.exp_avg_sq, state.max_exp_avg_sq, state.before


def _flat(tensor: Tensor | None) -> Tensor | None:
    """All elements in the order in which they lie in memory."""
    return None if tensor is None else tensor.detach().as_strided((tensor.numel(),), (1,))
