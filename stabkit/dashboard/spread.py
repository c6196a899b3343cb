"""Histograms over the tensors of a model, at a low cadence: how far its tensors lie apart, and which way that goes.

Each value is the logarithm of one tensor's number, so that a histogram of 300 tensors replaces 300 charts. They are made from
the sums that a record holds anyway: no weight is looked at again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stabkit.dashboard.events import encode_histogram
from stabkit.metric import TENSOR_COLUMNS, Array

__all__ = ["LEAST_TENSORS", "Spread", "describe_spread"]

LEAST_TENSORS = 8
"""Of fewer there is nothing to see in a histogram."""
_EVERY = 100
"""Steps between two of them, once the run has as many; before, at about 1, 2, 4, 8, ... steps."""
_BINS = 30
_PLACE = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
_DESCRIPTIONS = {
    "update_ratio": "norm of the update over norm of the weights, of each tensor, as a power of ten: -3 is usual",
    "grad_norm_used": "norm of the gradient as the optimizer used it, of each tensor, as a power of ten",
    "rms_ratio": "gradient over root of the second moment, of each tensor, as a power of ten: 0 is usual",
}


def describe_spread(quantity: str) -> str:
    """What a histogram shows, for whoever meets it in TensorBoard."""
    return _DESCRIPTIONS[quantity]


class Spread:
    """The histograms of one optimizer.

    Args:
        prefix: What its tags begin with.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{prefix}tensors/"
        self._next = 1

    def summary(self, step: int, tensors: Array, numel: Array) -> bytes:
        """The encoded histograms of a step, none where none is due.

        Args:
            step: Its number; one that goes back begins anew.
            tensors: Columns [tensors, columns] of the step.
            numel: How many elements each tensor has.
        """
        if len(tensors) < LEAST_TENSORS or (step < self._next and self._next - step <= _EVERY):
            return b""
        self._next = step + min(max(step, 1), _EVERY)
        return b"".join(
            encode_histogram(f"{self._prefix}log10 {quantity}", _bins(logs), describe_spread(quantity))
            for quantity, logs in _logs(tensors, numel).items()
            if len(logs)
        )


def _logs(tensors: Array, numel: Array) -> dict[str, Array]:
    """Logarithms of each quantity, of the tensors of which it is known and positive."""

    def column(name: str) -> Array:
        return np.asarray(tensors[:, _PLACE[name]])

    with np.errstate(all="ignore"):
        applied, intended = column("applied_update_sumsq"), column("update_sumsq")
        squares = {
            "update_ratio": np.where(np.isnan(applied), intended, applied) / column("weight_sumsq"),
            "grad_norm_used": column("grad_used_sumsq"),
            "rms_ratio": column("rms_sum") / numel,
        }
        logs = {name: np.log10(values) / 2 for name, values in squares.items()}
    return {name: values[np.isfinite(values)] for name, values in logs.items()}


def _bins(logs: Array) -> NDArray[np.float64]:
    """[bins, 3]: left edge, right edge and count."""
    low, high = float(logs.min()), float(logs.max())
    margin = max((high - low) * 0.01, 0.01)  # one value alone is drawn too
    counts, edges = np.histogram(logs, _BINS, (low - margin, high + margin))
    return np.stack([edges[:-1], edges[1:], counts.astype(np.float64)], axis=1)
