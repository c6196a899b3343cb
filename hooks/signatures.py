"""What tells whether a gradient was replaced or written to: its identity and its version, of all of an optimizer's at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from stabkit.hooks.distributed import version
from stabkit.hooks.statistics.native import finder

__all__ = [
    "Signatures", "changed", "chosen", "everywhere", "none", "places", "signature", "signatures", "untouched", "writes",
    "written",
]  # fmt: skip

Signatures: TypeAlias = bytes
"""int64 [n, 2]: (id, version) of each parameter's gradient, zeros where it has none. What is equal is equal byte for byte."""


def signatures(parameters: list[torch.Tensor]) -> Signatures:
    """Those of the gradients of these parameters, as they are now."""
    found: Signatures | None = finder.signatures(parameters) if finder else None
    return np.array([signature(p.grad) for p in parameters], np.int64).tobytes() if found is None else found


def signature(grad: torch.Tensor | None) -> tuple[int, int]:
    """That of one gradient."""
    if grad is None:
        return 0, 0
    return id(grad), grad._version if type(grad) is torch.Tensor else version(grad)


def none(signed: Signatures) -> bool:
    """Whether there is no gradient at all."""
    return not any(signed)


def everywhere(signed: Signatures) -> bool:
    """Whether every parameter has a gradient."""
    return bool(_table(signed)[:, 0].all())


def places(signed: Signatures) -> list[int]:
    """Of the parameters that have a gradient."""
    found: list[int] = np.flatnonzero(_table(signed)[:, 0]).tolist()
    return found


def changed(before: Signatures, now: Signatures) -> list[int]:
    """Places of the gradients that were written to or replaced; all, where an optimizer was first seen in between."""
    if before == now:
        return []
    earlier, later = _table(before), _table(now)
    if len(earlier) != len(later):
        return list(range(len(later)))
    found: list[int] = np.flatnonzero((earlier != later).any(axis=1)).tolist()
    return found


def writes(before: Signatures, now: Signatures) -> NDArray[np.int64] | None:
    """How many in-place writes to each gradient lie between the two; None where a gradient is another one now."""
    earlier, later = _table(before), _table(now)
    if len(earlier) != len(later) or (earlier[:, 0] != later[:, 0]).any():
        return None
    found: NDArray[np.int64] = later[:, 1] - earlier[:, 1]
    return found


def written(signed: Signatures, many: NDArray[np.int64]) -> Signatures:
    """The same after so many further in-place writes to each gradient."""
    table = _table(signed).copy()
    table[:, 1] += many
    found: Signatures = table.tobytes()
    return found


def chosen(signed: Signatures, which: Sequence[int | None]) -> Signatures:
    """Those of some parameters, in this order; None stands for one that is not among them and has no gradient."""
    table = np.vstack([_table(signed), np.zeros((1, 2), np.int64)])
    return table[[-1 if i is None else i for i in which]].tobytes()


def untouched(before: Signatures, now: Signatures) -> bool:
    """Whether any gradient is still there as it was."""
    earlier, later = _table(before), _table(now)
    return bool(((earlier == later).all(axis=1) & (later[:, 0] != 0)).any())


def _table(signed: Signatures) -> NDArray[np.int64]:
    return np.frombuffer(signed, np.int64).reshape(-1, 2) if signed else np.empty((0, 2), np.int64)
