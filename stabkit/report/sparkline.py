"""The course of the loss in two lines of characters: how high it stood, and where the findings lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from stabkit.finding import Finding, Severity
from stabkit.metric import Array
from stabkit.report.downsample import Rows
from stabkit.report.words import number
from stabkit.runlog import RunLog

__all__ = ["BARS", "BROKEN", "SIGN", "course", "places", "sparkline"]

BARS = "▁▂▃▄▅▆▇█"
BROKEN = "×"
"""Stands where nothing was a number."""
SIGN = {Severity.ERROR: "■", Severity.WARNING: "▲", Severity.INFO: "○"}
_STYLE = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold cyan"}
_WIDEST, _LEAST = 72, 8
_DECADES = 0.5


def places(steps: Rows, width: int) -> Rows:
    """The character of `width` that each step falls into, from 0."""
    first, reach = int(steps[0]), int(steps[-1] - steps[0]) + 1
    return np.minimum((steps - first) * width // max(reach, width), width - 1)


def course(steps: Rows, values: Array, width: int, between: tuple[float, float] | None = None) -> str:
    """One character for each stretch of steps: the height of its highest value.

    Args:
        steps: int64 [n], increasing.
        values: float64 [n].
        width: How many characters, at most the number of steps between the first and the last.
        between: The values that the lowest and the highest bar stand for, where several lines share them; those of the line
            itself where nothing is said.

    Returns:
        Bars of eight heights, by the logarithm where they span more than half a decade; BROKEN where a stretch holds what
        is not a number, a blank where it holds no step.
    """
    column, finite = places(steps, width), np.isfinite(values)
    highest = np.full(width, -np.inf)
    np.maximum.at(highest, column[finite], values[finite])
    known = np.isfinite(highest)
    if not known.any():
        return "".join(BROKEN if place in set(column.tolist()) else " " for place in range(width))
    heights = np.where(known, highest, np.nan)
    low, high = between or (float(np.nanmin(heights)), float(np.nanmax(heights)))
    heights = np.clip(heights, low, high)
    if low > 0 and np.log10(high / low) > _DECADES:
        heights, low, high = np.log10(heights), float(np.log10(low)), float(np.log10(high))
    share = (heights - low) / (high - low) if high > low else np.zeros(width) * heights
    line = [BARS[round(7 * each)] if each == each else " " for each in share.tolist()]
    for place in np.unique(column[~finite]).tolist():
        line[place] = BROKEN
    return "".join(line)


def sparkline(run: RunLog, findings: Sequence[Finding], console: Console) -> None:
    """Print the loss over the steps and the findings under it; nothing where no loss was recorded."""
    if not run.streams or not run.has("loss"):
        return
    series = run.series("loss")
    known = np.flatnonzero(np.isfinite(series.values))
    before = number(float(f"{series.values[known[0]]:.3g}")) if len(known) else "nan"
    after = number(float(f"{series.values[-1]:.3g}"))
    room = console.width - len(before) - len(after) - 10
    width = min(room, _WIDEST, int(series.steps[-1] - series.steps[0]) + 1)
    if width < _LEAST:
        return
    line = course(series.steps, series.values, width).rstrip()
    console.print()
    console.print(Text.assemble(("  loss ", "dim"), before, " ", line, " ", after), soft_wrap=True)
    marks = _marks(series.steps, findings, width)
    if marks.plain:
        console.print(Text.assemble(" " * (8 + len(before)), marks), soft_wrap=True)


def _marks(steps: Rows, findings: Sequence[Finding], width: int) -> Text:
    """A sign under the first step of each finding; where several share a place, that of the worst."""
    worst: dict[int, Severity] = {}
    for finding in findings:
        step = np.array([steps[0], np.clip(finding.first_step, steps[0], steps[-1]), steps[-1]])
        place = int(places(step, width)[1])
        worst[place] = max(finding.severity, worst.get(place, finding.severity))
    line = Text()
    for place in range(max(worst, default=-1) + 1):
        line.append(SIGN[worst[place]] if place in worst else " ", _STYLE[worst[place]] if place in worst else "")
    return line
