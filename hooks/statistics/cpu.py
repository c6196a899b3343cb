"""The fast path: one call into C (`_one_pass.c`) for all plain float32 CPU tensors of a step.

Nothing is kept between calls. Addresses, dtypes and strides are looked up anew each step, which for 52 tensors costs
less than a tenth of the pass itself, and a stale address could crash the user's training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from stabkit.hooks.statistics import AdamStep, TensorState

__all__ = ["ROW", "measure_after", "measure_before", "native"]

ROW = np.dtype([("addresses", np.uint64, 6), ("size", np.int64), ("coefficients", np.float64, 5)])
"""`Row` of _sums.h: param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, before; elements; step, decay, bias, eps, sign."""

THREADS = 2
"""The pass is bound by memory, and the machine is the user's."""

_PLAIN = (Tensor, torch.nn.Parameter)  # subclasses may have no memory of their own


def _load() -> Any:
    try:
        module = import_module("stabkit.hooks.statistics._one_pass")
    except ImportError:
        return None
    return module if module.ROW_BYTES == ROW.itemsize else None  # a stale build of another version


native: Any = _load()
"""The extension module, or None where it was not built."""


def measure_before(states: Sequence[TensorState], steps: Sequence[AdamStep], out: NDArray[np.float64]) -> list[int]:
    """Fills the BEFORE_COLUMNS of the tensors it can read; returns the places of the others."""
    if native is None:
        return list(range(len(states)))
    rows = [_addresses(state.param, state.grad, state.exp_avg, None, None, None) for state in states]
    return _call(native.before, rows, states, steps, out)


def measure_after(states: Sequence[TensorState], steps: Sequence[AdamStep], out: NDArray[np.float64]) -> list[int]:
    """Fills the AFTER_COLUMNS of the tensors it can read and that lack nothing; returns the places of the others."""
    if native is None:
        return list(range(len(states)))
    rows = [
        None
        if s.grad is None or s.exp_avg is None or s.exp_avg_sq is None
        else _addresses(s.param, s.grad, s.exp_avg, s.exp_avg_sq, s.max_exp_avg_sq, s.before)
        for s in states
    ]
    return _call(native.after, rows, states, steps, out)


def _call(
    function: Callable[[int, int, int, int], None],
    rows: list[list[int] | None],
    states: Sequence[TensorState],
    steps: Sequence[AdamStep],
    out: NDArray[np.float64],
) -> list[int]:
    fit = [i for i, row in enumerate(rows) if row is not None]
    if fit:
        table = np.zeros(len(fit), dtype=ROW)
        table["addresses"] = [row for row in rows if row is not None]
        table["size"] = [states[i].param.numel() for i in fit]
        table["coefficients"] = _coefficients([steps[i] for i in fit])
        result = np.empty((len(fit), out.shape[1]))
        # Neither table nor tensors can go away meanwhile: this frame and the caller's hold them.
        function(table.ctypes.data, len(fit), result.ctypes.data, min(THREADS, torch.get_num_threads()))
        out[fit] = result
    return [i for i, row in enumerate(rows) if row is None]


def _coefficients(steps: Sequence[AdamStep]) -> list[tuple[float, ...]]:
    """`step_size, decay, bias, eps, sign` of each step; worked out once for those that share an object."""
    known: dict[int, tuple[float, ...]] = {}
    for step in steps:
        if id(step) not in known:
            bias1, bias2 = 1 - step.beta1**step.count, 1 - step.beta2**step.count
            decay = step.lr * step.weight_decay if step.decoupled else 0.0
            sign = -1.0 if step.maximize else 1.0
            known[id(step)] = (step.lr / bias1 if bias1 else 0.0, decay, bias2, step.eps, sign)
    return [known[id(step)] for step in steps]


def _addresses(param: Tensor, *others: Tensor | None) -> list[int] | None:
    """Addresses of tensors that C can walk side by side as flat arrays (0 for an absent one), or None."""
    if not _readable(param) or not (size := param.numel()):
        return None
    contiguous = param.is_contiguous()
    if not contiguous and not _gapless(param):
        return None
    addresses = [param.data_ptr()]
    for tensor in others:
        if tensor is None:
            addresses.append(0)
        elif not _readable(tensor) or tensor.numel() != size:
            return None
        elif tensor.is_contiguous() if contiguous else _same_strides(tensor, param):
            addresses.append(tensor.data_ptr())
        else:
            return None
    return addresses


def _readable(tensor: Tensor) -> bool:
    return (
        type(tensor) in _PLAIN
        and tensor.dtype is torch.float32
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()  # a view of a conjugate's imaginary part: its sign is not in memory
    )


def _gapless(tensor: Tensor) -> bool:
    """Whether some order of the dimensions makes the tensor contiguous, so that it fills its stretch of memory."""
    strides = tensor.stride()
    return tensor.permute(sorted(range(tensor.dim()), key=lambda d: -strides[d])).is_contiguous()


def _same_strides(tensor: Tensor, param: Tensor) -> bool:
    return tensor.shape == param.shape and tensor.stride() == param.stride()
