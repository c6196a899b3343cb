"""How a figure and a table are set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Data", "figure", "table"]

Data = Mapping[str, Any]


def figure(data: Data | None, percent: bool = True) -> str:
    """A figure with its interval; a dash where nothing was there to measure."""
    if not data or data["value"] is None:
        return "–"
    scale, digits = (100, 0) if percent else (1, 2)
    numbers = [scale * data[key] if data[key] is not None else float("nan") for key in ("value", "low", "high")]
    return "{0:.{3}f} ({1:.{3}f}–{2:.{3}f})".format(*numbers, digits)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    bar = r"\|"
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', bar) for cell in line)} |" for line in lines)
