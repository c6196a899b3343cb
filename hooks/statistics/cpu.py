"""The fast path: one call into C (`_one_pass.c`) for all plain CPU tensors of a step, of float32, bfloat16 or float16.

Nothing is kept between calls: a stale address could crash the user's training. Looking addresses, dtypes and strides
up anew costs about as much as the optimizer's own look at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabkit.hooks.statistics.native import ROW
from stabkit.hooks.statistics.native import native as loaded
from stabkit.hooks.statistics.team import parallel

if TYPE_CHECKING:
    from stabkit.hooks.statistics import AdamStep, TensorState

__all__ = ["coefficients", "measure_after", "measure_before", "measure_sizes", "native"]

_AFTER_COLUMNS = 16
_STRETCH = 65_536  # elements of a tensor that is measured by itself; a piece of the C code
_STANDSTILL = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # coefficients of no step
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_PLAIN = (Tensor, torch.nn.Parameter)  # subclasses may have no memory of their own


native: Any = loaded
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


def measure_sizes(tensors: Sequence[Tensor], out: NDArray[np.float64]) -> list[int]:
    """Fills Σx², absmax, nonfinite and zeros of the tensors it can read; returns the places of the others.

    They are measured as gradients of a step 0, which leaves out the update. The moments that a gradient has beside it are one
    short stretch of zeros, which stays in cache, for stretch after stretch of the tensors.
    """
    found = [None if native is None else _addresses(tensor) for tensor in tensors]
    fit = [i for i, address in enumerate(found) if address is not None]
    if not fit:
        return list(range(len(tensors)))
    still = np.zeros(_STRETCH, dtype=np.float32)
    rows: list[bytes] = []
    starts: list[int] = []
    for i in fit:
        address, kinds, size = found[i]  # type: ignore[misc]
        starts.append(len(rows))
        for start in range(0, size, _STRETCH):
            here, zeros = address + tensors[i].element_size() * start, still.ctypes.data
            row = (here, here, zeros, zeros, 0, 0, kinds[:1] * 2, min(_STRETCH, size - start), *_STANDSTILL)
            rows.append(ROW.pack(*row))
    table = np.empty((len(rows), _AFTER_COLUMNS))
    native.after(b"".join(rows), table.ctypes.data, torch.get_num_threads(), parallel)
    out[fit] = np.add.reduceat(table[:, :4], starts, axis=0)
    out[fit, 1] = np.maximum.reduceat(table[:, 1], starts)
    return [i for i, address in enumerate(found) if address is None]


def _call(
    function: Callable[[bytes, int, int, int], None],
    addresses: Iterable[list[Any] | None],
    steps: Sequence[AdamStep],
    out: NDArray[np.float64],
) -> list[int]:
    rows, fit, others = [], [], []
    last: AdamStep | None = None
    numbers: tuple[float, ...] = ()
    for i, found in enumerate(addresses):
        if found is None:
            others.append(i)
            continue
        if steps[i] is not last:  # tensors of a group share one
            last = steps[i]
            numbers = coefficients(last)
        rows.append(ROW.pack(*found, *numbers))
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


def coefficients(step: AdamStep) -> tuple[float, ...]:
    """The numbers of a `Row`: step_size, decay, bias, eps, sign, beta1."""
    bias1, bias2 = 1 - step.beta1**step.count, 1 - step.beta2**step.count
    decay = step.lr * step.weight_decay if step.decoupled else 0.0
    sign = -1.0 if step.maximize else 1.0
    return (step.lr / bias1 if bias1 else 0.0, decay, bias2, step.eps, sign, step.beta1)


def _addresses(param: Tensor, *others: Tensor | None) -> list[Any] | None:
    """Addresses (0 for an absent one), kinds and size of tensors that C can walk side by side as flat arrays, or None."""
    size = param.numel()
    if not size or not _readable(param):
        return None
    contiguous = param.is_contiguous()
    if not contiguous and not _gapless(param):
        return None
    found: list[Any] = [param.data_ptr()]
    kinds = [_KINDS[param.dtype]]
    for tensor in others:
        kinds.append(0 if tensor is None else _KINDS.get(tensor.dtype, 0))
        if tensor is None:
            found.append(0)
        elif not _readable(tensor) or tensor.numel() != size:
            return None
        elif tensor.is_contiguous() if contiguous else _same_strides(tensor, param):
            found.append(tensor.data_ptr())
        else:
            return None
    return [*found, bytes(kinds), size]


def _readable(tensor: Tensor) -> bool:
    return (
        tensor.dtype in _KINDS
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
