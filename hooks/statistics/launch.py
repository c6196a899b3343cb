"""Measures tensors of one device by the kernels of `triton_kernel`: two launches for all of the same types.

Imported only where there is such a tensor: Triton takes its time, and may be absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from stabkit.hooks.statistics.device_table import CHUNK, COLUMNS, ROW, WIDTHS, numbers_of, table_for
from stabkit.hooks.statistics.triton_after import after_chunks
from stabkit.hooks.statistics.triton_bits import compare_elements, keep_elements
from stabkit.hooks.statistics.triton_kernel import before_chunks, merge_chunks

if TYPE_CHECKING:
    from stabkit.hooks.statistics import AdamStep, TensorState

__all__ = ["Kept", "columns_of"]

WARPS = 8
_THREADS = 32 * WARPS
_REGISTERS = {} if torch.version.hip else {"maxnreg": 128}
"""Of each thread: with more, only one program would fit a multiprocessor, and it would wait for memory half of the time."""
_MERGED_AT_ONCE = 128  # chunks: 4,096 numbers for 8 warps
_LANES = 32

_BITS = {2: (torch.int16, tl.int16), 4: (torch.int32, tl.int32)}
_KINDS: dict[torch.dtype, Any] = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""The types that the kernels can read."""


def columns_of(
    mode: str, states: Sequence[TensorState], addresses: Sequence[Sequence[int]], steps: Sequence[AdamStep]
) -> Tensor:
    """The columns of tensors that agree in types and device.

    Args:
        mode: "before", "after" or "step".
        states: One per tensor, none of them empty.
        addresses: Of each, the first eight numbers of its row, and its size.
        steps: One per tensor.

    Returns:
        float64 [len(states), columns] on the device.
    """
    param = states[0].param
    table = table_for(param.device, tuple(row[8] for row in addresses), mode)
    rows = np.zeros((len(states), ROW), np.int64)
    rows[:, :9] = addresses
    rows[:, 9:11] = table.first
    shared: dict[int, tuple[float, ...]] = {id(step): numbers_of(step) for step in steps}
    rows.view(np.float64)[:, 12:] = [shared[id(step)] for step in steps]

    start, width = WIDTHS[mode]
    aligned = not (rows[:, :6] % 16).any()
    kinds = _kinds(states[0])
    read_at_once = 4 if all(kind is tl.float32 for kind in kinds) else 8
    sizes = {"CHUNK": CHUNK, "T": _THREADS, "V": read_at_once, "ROW": ROW, "COLUMNS": COLUMNS, "num_warps": WARPS}
    sizes |= _REGISTERS
    with torch.cuda.device(param.device) if param.is_cuda else nullcontext():
        out = torch.empty((len(states), width), dtype=torch.float64, device=param.device)
        table.enter()
        table.tell(rows)
        at, numbers = table.rows
        grid = (len(table.chunks),)
        if mode == "before":
            p, g, m, _ = kinds
            before_chunks[grid](at, numbers, table.chunks, table.partials, P=p, G=g, M=m, ALIGNED=aligned, **sizes)
        else:
            p, g, m, v = kinds
            after_chunks[grid](
                *(at, numbers, table.chunks, table.partials),
                **{"P": p, "G": g, "M": m, "S": v, "ALIGNED": aligned, "STEP": mode == "step", **sizes},
            )
        merge_chunks[(len(states),)](
            *(at, numbers, table.partials, out),
            START=start,
            WIDTH=width,
            STEP=mode == "step",
            AT_ONCE=_MERGED_AT_ONCE,
            LANES=_LANES,
            ROW=ROW,
            COLUMNS=COLUMNS,
            num_warps=WARPS,
        )
        table.leave()
    return out


def _kinds(state: TensorState) -> tuple[Any, Any, Any, Any]:
    """Types of p, g, m and v; an absent one is never read, as whatever it be."""
    p, *others = state.param, state.grad, state.exp_avg, state.exp_avg_sq
    kind = _KINDS[p.dtype]
    g, m, v = (kind if tensor is None else _KINDS[tensor.dtype] for tensor in others)
    return kind, g, m, v


class Kept:
    """Some elements of parameters from before a step.

    Args:
        params: Of one device and dtype, contiguous, none of them empty.
        elements: About how many of each.
    """

    def __init__(self, params: Sequence[Tensor], elements: int) -> None:
        device, (whole, self._whole) = params[0].device, _BITS[params[0].element_size()]
        self._sizes = {"ELEMENTS": elements, "AT_ONCE": 1024, "ROW": ROW, "num_warps": 4}
        self._rows = np.zeros((len(params), ROW), np.int64)
        self._rows[:, 0] = [p.data_ptr() for p in params]
        self._rows[:, 8] = [p.numel() for p in params]
        self._table = table_for(device, tuple(self._rows[:, 8].tolist()), "bits")
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self._kept = torch.empty((len(params), 2 * elements), dtype=whole, device=device)
            self._table.enter()
            self._table.tell(self._rows)
            keep_elements[(len(params),)](self._table.rows[0], self._kept, BITS=self._whole, **self._sizes)
            self._table.leave()

    def still(self, params: Sequence[Tensor]) -> bool:
        """Whether the parameters are of the same sizes and dtype as before, on the same device."""
        bits = self._kept.dtype.itemsize
        alike = all(p.device == self._kept.device and p.element_size() == bits for p in params)
        return alike and [p.numel() for p in params] == self._rows[:, 8].tolist()

    def compare(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Tensor:
        """How many of the elements with a gradient are unchanged, and how many of those there are: float64 [parameters, 2].

        Args:
            params: The same as before.
            grads: Contiguous, of one dtype, or None.
        """
        device, kind = params[0].device, next((g.dtype for g in grads if g is not None), torch.float32)
        self._rows[:, 0] = [p.data_ptr() for p in params]
        self._rows[:, 1] = [0 if g is None else g.data_ptr() for g in grads]
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            out = torch.empty((len(params), 2), dtype=torch.float64, device=device)
            self._table.enter()
            self._table.tell(self._rows)
            compare_elements[(len(params),)](
                *(self._table.rows[0], self._kept, out), **{"BITS": self._whole, "G": _KINDS[kind], **self._sizes}
            )
            self._table.leave()
        return out
