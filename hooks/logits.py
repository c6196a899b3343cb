"""How large the logits of an attention and of a classifier are: two numbers, each without a matrix of their size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["attention_bound", "heads_of", "log_partition", "plain"]

LARGEST_SHARE = 2**22
"""Logits of a classifier that are looked at, at most: evenly spaced rows where there are more."""
_INTEGERS = (torch.int64, torch.int32, torch.uint8)

_is_wrapped: Callable[[Any], bool] = getattr(
    getattr(torch._C, "_functorch", None), "is_functorch_wrapped_tensor", lambda tensor: False
)  # a tensor inside vmap or a functional derivative stands for others


def plain(tensor: Any) -> bool:
    """Whether it is a tensor of numbers here: no shard, whose norm would take a collective, and nothing that is traced."""
    kind = type(tensor) in (torch.Tensor, nn.Parameter) and not _is_wrapped(tensor)
    return kind and tensor.layout == torch.strided and tensor.is_floating_point() and tensor.numel() > 0


def attention_bound(query: torch.Tensor, key: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """The longest query times the longest key of the same sequence and head, scaled: no logit of theirs is larger.

    Reads queries and keys once, and makes a number for each row of theirs. Masks and biases that are added later do not count.

    Args:
        query: [..., heads, queries, d].
        key: [..., heads, keys, d]; its heads may each serve several of the query's, which follow one another.
        scale: What the products are multiplied by; 1 / sqrt(d) by default.

    Returns:
        float32, no dimension: the largest over all sequences and heads.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else abs(scale)
    longest = [torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32).amax(-1) for rows in (query, key)]
    queries, keys = longest
    if queries.dim() and queries.shape[-1] != keys.shape[-1]:
        keys = keys.repeat_interleave(queries.shape[-1] // keys.shape[-1], dim=-1)
    bound: torch.Tensor = (queries * keys).amax() * factor
    return bound


def heads_of(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[time, batch, heads x d] or [time, heads x d], as `nn.MultiheadAttention` projects them -> [..., heads, time, d]."""
    split: torch.Tensor = rows.unflatten(-1, (heads, rows.shape[-1] // heads))
    return split.movedim(0, -2)


def log_partition(logits: torch.Tensor, target: Any = None, ignored: int = -100) -> torch.Tensor:
    """The mean of logsumexp over the classes, less its value for logits that are all 0: log(classes).

    Args:
        logits: [classes], [rows, classes] or [rows, classes, ...], as `cross_entropy` takes them.
        target: Of which rows that hold `ignored` do not count; class probabilities leave none out.
        ignored: Such as the number of padding.

    Returns:
        float32, no dimension; NaN where no row counts.
    """
    rows = logits if logits.dim() == 1 else logits.movedim(1, -1)
    numbered = isinstance(target, torch.Tensor) and target.dtype in _INTEGERS and target.shape == rows.shape[:-1]
    chosen = _spaced(rows.shape)
    log_sum: torch.Tensor = torch.logsumexp(rows[chosen].to(torch.float32), dim=-1) - math.log(rows.shape[-1])
    if not numbered:
        return log_sum.mean()
    counts: torch.Tensor = target[chosen] != ignored
    return torch.where(counts, log_sum, 0.0).sum() / counts.sum()


def _spaced(shape: torch.Size) -> tuple[slice, ...]:
    """Which rows to look at, evenly spaced. Strides are odd, so that no place in sequences of 2^n is met over and over."""
    left, slices = math.prod(shape), []
    for size in shape[:-1]:
        stride = min(math.ceil(left / LARGEST_SHARE) | 1, size) if left > LARGEST_SHARE else 1
        slices.append(slice(None, None, stride))
        left = left // size * math.ceil(size / stride)
    return tuple(slices)
