"""The fast path: one call into C (`_one_pass.c`) for all plain float32 CPU tensors of a step.

Nothing is kept between calls: a stale address could crash the user's training. Looking addresses, dtypes and strides
up anew costs about as much as the optimizer's own look at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from struct import Struct
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabkit.hooks.statistics.team import parallel

if TYPE_CHECKING:
    from stabkit.hooks.statistics import AdamStep, TensorState

__all__ = ["measure_after", "measure_before", "native"]

# `Row` of _sums.h: addresses of param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, before; elements; step_size, decay,
# bias, eps, sign.
_ROW = Struct("6Qq5d")
_PLAIN = (Tensor, torch.nn.Parameter)  # subclasses may have no memory of their own


def _load() -> Any:
    try:
        module = import_module("stabkit.hooks.statistics._one_pass")
    except ImportError:
        return None
    return module if _ROW.size == module.ROW_BYTES else None  # a stale build of another version


native: Any = _load()
"""The extension module, or None where it was not built."""


def measure_before(states: Sequence[TensorState], steps: Sequence[AdamStep], out: NDArray[np.float64]) -> list[int]:
    """Fills the BEFORE_COLUMNS of the tensors it can read; returns the places of the others."""
    if native is None:
        return list(range(len(states)))
    return _call(native.before, (_addresses(s.param, s.grad, s.exp_avg, None, None, None) for s in states), steps, out)


def measure_after(states: Sequence[TensorState], steps: Sequence[AdamStep], out: NDArray[np.float64]) -> list[int]:
    """Fills the AFTER_COLUMNS of the tensors it can read and that lack nothing; returns the places of the others."""
    if native is None:
        return list(range(len(states)))
    addresses = (
        None
        if s.grad is None or s.exp_avg is None or s.exp_avg_sq is None
        else _addresses(s.param, s.grad, s.exp_avg, s.exp_avg_sq, s.max_exp_avg_sq, s.before)
        for s in states
    )
    return _call(native.after, addresses, steps, out)


def _call(
    function: Callable[[bytes, int, int, int], None],
    addresses: Iterable[list[int] | None],
    steps: Sequence[AdamStep],
    out: NDArray[np.float64],
) -> list[int]:
    rows, fit, others = [], [], []
    last: AdamStep | None = None
    coefficients: tuple[float, ...] = ()
    for i, found in enumerate(addresses):
        if found is None:
            others.append(i)
            continue
        if steps[i] is not last:  # tensors of a group share one
            last = steps[i]
            coefficients = _coefficients(last)
        rows.append(_ROW.pack(*found, *coefficients))
        fit.append(i)
    # Nothing can go away meanwhile: the frames above hold the tensors.
    threads = torch.get_num_threads()
    if not others:
        function(b"".join(rows), out.ctypes.data, threads, parallel)
    elif fit:
        part = np.empty((len(fit), out.shape[1]))
        function(b"".join(rows), part.ctypes.data, threads, parallel)
        out[fit] = part
    return others


def _coefficients(step: AdamStep) -> tuple[float, ...]:
    bias1, bias2 = 1 - step.beta1**step.count, 1 - step.beta2**step.count
    decay = step.lr * step.weight_decay if step.decoupled else 0.0
    return (step.lr / bias1 if bias1 else 0.0, decay, bias2, step.eps, -1.0 if step.maximize else 1.0)


def _addresses(param: Tensor, *others: Tensor | None) -> list[int] | None:
    """Addresses (0 for an absent one) and size of tensors that C can walk side by side as flat arrays, or None."""
    size = param.numel()
    if not size or not _readable(param):
        return None
    contiguous = param.is_contiguous()
    if not contiguous and not _gapless(param):
        return None
    found = [param.data_ptr()]
    for tensor in others:
        if tensor is None:
            found.append(0)
        elif not _readable(tensor) or tensor.numel() != size:
            return None
        elif tensor.is_contiguous() if contiguous else _same_strides(tensor, param):
            found.append(tensor.data_ptr())
        else:
            return None
    found.append(size)
    return found


def _readable(tensor: Tensor) -> bool:
    return (
        tensor.dtype is torch.float32
        and type(tensor) in _PLAIN
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
