"""Megatron-LM's line of an iteration: `iteration 31214/ 115311 | lm loss: 2.198845E+00 | grad norm: 0.242 | ... |`."""

from __future__ import annotations

import re

from stabkit.sources.cells import NUMBER, Cell, read_cell

__all__ = ["row"]

_ITERATION = re.compile(r"(?:^|[\s:\]])iteration\s+(\d+)\s*/\s*\d+\s*\|")
_FIELD = re.compile(rf"\s*([A-Za-z][^|:]{{0,80}}?)\s*:\s*({NUMBER})\s*\|")


def row(line: str) -> dict[str, Cell] | None:
    """The cells of such a line, None for any other. A value that is cut off is left out: it ends without its bar."""
    start = _ITERATION.search(line)
    if start is None or line[start.end() :].count("|") < 1:
        return None
    cells: dict[str, Cell] = {"iteration": float(start[1])}
    for name, value in _FIELD.findall(line[start.end() :]):
        cells[name] = read_cell(value)
    return cells
