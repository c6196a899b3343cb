"""DeepSpeed's own lines: `step=10, skipped=6, lr=[9.6e-06, 9.6e-06], mom=[...]`, and the loss scale it gave up in between.

An overflow names no step, only the scale that was tried and the one that is tried next. The row after it has that scale.
"""

from __future__ import annotations

import re

from stabkit.sources.cells import NUMBER, Cell, read_cell

__all__ = ["DeepSpeed"]

_STEP = re.compile(r"\]\s*step=(\d+),\s*skipped=(\d+),\s*lr=\[([^\]]*)\]")
_REDUCED = re.compile(rf"OVERFLOW!.*?loss scale:\s*({NUMBER}),\s*reducing to\s*({NUMBER})")


class DeepSpeed:
    """Reads line by line; the scale is remembered from one line to the next."""

    def __init__(self) -> None:
        self._scale: Cell = None

    def row(self, line: str) -> dict[str, Cell] | None:
        """The cells of a line with a step, None for any other."""
        if "OVERFLOW!" in line:
            if match := _REDUCED.search(line):
                self._scale = read_cell(match[2])
            return None
        if "skipped=" not in line or not (match := _STEP.search(line)):
            return None
        rates = [rate for rate in match[3].split(",") if rate.strip()]
        cells: dict[str, Cell] = {"step": float(match[1]), "skipped": float(match[2])}
        cells |= {f"lr/{group}" if group else "lr": read_cell(rate) for group, rate in enumerate(rates)}
        if self._scale is not None:
            cells["loss_scale"] = self._scale
        self._scale = None
        return cells
