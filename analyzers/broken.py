"""In which steps tensors held something that is no number."""

from __future__ import annotations

import numpy as np

from stabkit.analyzers.series import Flags
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows

__all__ = ["BrokenGradients", "BrokenWeights"]


class _Broken:
    """The measured steps at which some tensor held a NaN or an infinity.

    Attributes:
        rows: bool [n], by row of `run.stream.tensor_steps`.
    """

    metrics: tuple[str, ...] = ()

    def __init__(self, run: RunLog) -> None:
        self.rows: Flags = np.zeros(len(run.stream.tensor_steps), dtype=bool)

    def read(self, rows: Rows) -> None:
        """Take in the next block."""
        self.rows[rows.begin : rows.begin + len(rows)] = (rows.table(self.metrics[0]) > 0).any(axis=1)


class BrokenGradients(_Broken):
    """Of gradients, as the optimizer used them."""

    metrics = ("grad_nonfinite",)


class BrokenWeights(_Broken):
    """Of weights, after the step."""

    metrics = ("weight_nonfinite",)
