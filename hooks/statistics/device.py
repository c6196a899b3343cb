"""Tensors on a device: who measures them. Triton's kernels if they can, else torch's operations on stacks.

The numbers stay on the device until the step's batch carries them to the host. Nothing here waits for the device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabkit.hooks.statistics import stacked
from stabkit.hooks.statistics.device_table import Full, columns_known
from stabkit.hooks.transfer import Batch
from stabkit.metric import Array

if TYPE_CHECKING:
    from stabkit.hooks.statistics import AdamStep, TensorState

__all__ = ["backend", "compare", "fits", "keep", "measure", "news", "on_device"]

_PLAIN = (Tensor, torch.nn.Parameter)  # subclasses may have no memory of their own
_READABLE = (torch.float32, torch.bfloat16, torch.float16)

_given_up: str = ""
_news: list[str] = []


def measure(
    mode: str, states: Sequence[TensorState], steps: Sequence[AdamStep], places: Sequence[int], batch: Batch, out: Array
) -> list[int]:
    """Fills rows of the tensors on a device, once the batch is fetched.

    Args:
        mode: "before" for BEFORE_COLUMNS, "after" for AFTER_COLUMNS, "step" for both after the step.
        states: One per tensor.
        steps: One per tensor.
        places: Which of them to look at.
        batch: The step's batch.
        out: float64 [len(states), columns].

    Returns:
        The places of those that it cannot measure.
    """
    others: list[int] = []
    alike: dict[Any, list[int]] = {}
    addresses: dict[int, list[int]] = {}
    for i in places:
        state = states[i]
        found = _addresses(state, mode) if on_device(state.param) else None
        if found is None:
            others.append(i)
        else:
            addresses[i] = found
            alike.setdefault(_kind(state, found, mode), []).append(i)
    for group in alike.values():
        those, numbers = [states[i] for i in group], [steps[i] for i in group]
        columns = _by_triton(mode, those, [addresses[i] for i in group], numbers)
        order = [*range(len(group))]
        if columns is None:
            columns, order = stacked.columns_of(mode, those, numbers)
        told = columns_known(mode, [those[i] for i in order], [numbers[i] for i in order])
        batch.then(columns, functools.partial(_fill, out, [group[i] for i in order], told))
    return sorted(others)


def keep(params: Sequence[Tensor], elements: int) -> Any:
    """Keeps about so many elements of each of some parameters that agree in dtype, to be compared after a step (`launch.Kept`).

    Returns:
        None where they are not all plain, contiguous tensors of a device, or where that failed.
    """
    if not params or _kernels() is None or not all(on_device(p) and fits(p, p) for p in params):
        return None
    try:
        return _kernels().Kept(params, elements)
    except Full:
        return None
    except Exception as error:
        _give_up(f"{type(error).__name__}: {error}")
        return None


def compare(kept: Any, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Tensor | None:
    """How many of the elements are unchanged, and how many had a gradient: float64 [parameters, 2], or None as above."""
    if not (kept.still(params) and all(fits(p, p) for p in params)):
        return None
    try:
        counts: Tensor = kept.compare(params, grads)
    except Full:
        return None
    except Exception as error:
        _give_up(f"{type(error).__name__}: {error}")
        return None
    return counts


def fits(tensor: Tensor, param: Tensor) -> bool:
    """Whether a kernel can read a tensor beside a parameter, element by element as they lie."""
    return bool(tensor.numel()) and tensor.numel() == param.numel() and _readable(tensor, param) and tensor.is_contiguous()


def on_device(tensor: Tensor) -> bool:
    """Whether a tensor lies where kernels are launched."""
    return tensor.is_cuda


def backend() -> str:
    """Says what measures tensors on a CUDA device: "triton", or "stacked" where Triton is absent or does not work."""
    return "stacked" if _kernels() is None else "triton"


def news() -> str:
    """Why Triton was given up, told once; "" where there is nothing to tell."""
    return _news.pop() if _news else ""


def _by_triton(
    mode: str, states: Sequence[TensorState], addresses: Sequence[Sequence[int]], steps: Sequence[AdamStep]
) -> Tensor | None:
    kernels = _kernels()
    if kernels is None:
        return None
    try:
        columns: Tensor = kernels.columns_of(mode, states, addresses, steps)
    except Full:  # for this step; the device will catch up
        return None
    except torch.cuda.OutOfMemoryError:  # the fallback would need more
        raise
    except Exception as error:  # an old GPU, no compiler, a home that cannot be written to: Triton has many ways to fail
        _give_up(f"{type(error).__name__}: {error}")
        return None
    return columns


def _kernels() -> Any:
    """The module that launches them, or None."""
    if _given_up:
        return None
    try:
        return import_module("stabkit.hooks.statistics.launch")
    except Exception as error:  # a Triton for another torch may raise anything
        _give_up(f"{type(error).__name__}: {error}")
        return None


def _give_up(why: str) -> None:
    global _given_up
    _given_up = " ".join(why.split())[:300]
    _news.append(_given_up)


def _fill(out: Array, group: Sequence[int], told: NDArray[np.bool_], values: NDArray[np.float64]) -> None:
    out[group] = np.where(told, values.reshape(told.shape), np.nan)


def _kind(state: TensorState, addresses: Sequence[int], mode: str) -> tuple[Any, ...]:
    """What tensors of one launch have in common."""
    moments = (None if t is None else t.dtype for t in (state.grad, state.exp_avg, state.exp_avg_sq))
    aligned = all(address % 16 == 0 for address in addresses[:6])
    return (state.param.device, state.param.dtype, *moments, aligned)


def _addresses(state: TensorState, mode: str) -> list[int] | None:
    """The first nine numbers of a row of the table; None where a kernel cannot read the tensors side by side."""
    p = state.param
    size = p.numel()
    if not size or not _readable(p, p):
        return None
    belongings: list[Tensor | None] = [state.grad, state.exp_avg]
    if mode == "before":
        belongings += [None, None, None]
    else:
        belongings += [state.exp_avg_sq, state.max_exp_avg_sq, state.before]
        if not _same_type(state.max_exp_avg_sq, state.exp_avg_sq) or not _same_type(state.before, p):
            return None
    contiguous = p.is_contiguous()
    if not contiguous and not _gapless(p):
        return None
    found = [p.data_ptr()]
    for tensor in belongings:
        if tensor is None:
            found.append(0)
        elif not _readable(tensor, p) or tensor.numel() != size:
            return None
        elif tensor.is_contiguous() if contiguous else tensor.shape == p.shape and tensor.stride() == p.stride():
            found.append(tensor.data_ptr())
        else:
            return None
    for number in (state.count, state.lr):
        if number is None:
            found.append(0)
        elif number.dtype is torch.float32 and number.device == p.device and number.numel() == 1:
            found.append(number.data_ptr())
        else:
            return None
    found.append(size)
    return found


def _readable(tensor: Tensor, param: Tensor) -> bool:
    return (
        tensor.dtype in _READABLE
        and type(tensor) in _PLAIN
        and tensor.device == param.device
        and tensor.layout is torch.strided
        and not tensor.is_neg()
    )


def _same_type(one: Tensor | None, other: Tensor | None) -> bool:
    return one is None or (other is not None and one.dtype is other.dtype)


def _gapless(tensor: Tensor) -> bool:
    """Whether some order of the dimensions makes the tensor contiguous, so that it fills its stretch of memory."""
    strides = tensor.stride()
    return tensor.permute(sorted(range(tensor.dim()), key=lambda d: -strides[d])).is_contiguous()
