"""A comparison on the terminal: one line that says it all, what it means, what was set differently, and the curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from stabkit.compare.result import Comparison, Parting, Setting, Side, Verdict
from stabkit.compare.words import drawn, explained, headline, how_far, parted_at
from stabkit.metric import Array
from stabkit.report.downsample import Rows
from stabkit.report.sparkline import course, places
from stabkit.report.terminal import columns, hang, heading, show
from stabkit.report.words import count, listed, number, printable, shortened
from stabkit.runlog import RunLog

__all__ = ["report"]

_STYLE = {Verdict.PARTED: "bold yellow", Verdict.UNKNOWN: "bold yellow"}
_PARTINGS_SHOWN, _SETTINGS_SHOWN = 8, 24
_WIDEST, _LEAST = 72, 8
_NUMBERS = 54
"""Characters of a line of the table before the tensor's name."""
_MARK = "▲"

Curve = tuple[Rows, Array]


def report(found: Comparison, a: RunLog, b: RunLog, console: Console) -> None:
    """Print a comparison.

    Args:
        found: What to print.
        a: The first run.
        b: The second.
        console: Where to.
    """
    for name, side in (("A", found.a), ("B", found.b)):
        console.print(Text.assemble((name, "bold"), f" {_side(side)}"), soft_wrap=not console.is_terminal)
    console.print(Text(headline(found), _STYLE.get(found.verdict, "bold green")), soft_wrap=not console.is_terminal)
    for sentence in explained(found):
        console.print()
        hang(console, sentence)
    _curves(found, a, b, console)
    _settings(found.settings, console)
    _partings(found.partings, found.looked_at, console)
    if found.notes:
        heading(console, "Notes")
    for note in found.notes:
        hang(console, printable(note), "  - ", indent=4)


def _side(side: Side) -> str:
    steps = count(side.steps, "step")
    path, source = printable(side.path or "a run in memory"), printable(side.source)
    return f"{path}: {steps}, {side.first} to {side.last}, recorded by {source}"


def _settings(settings: Sequence[Setting], console: Console) -> None:
    heading(console, "Set differently")
    if not settings:
        hang(console, Text("nothing that was recorded", "dim"))
        return
    stepped = any(each.step is not None for each in settings)
    table = columns("setting", "A", "B", *(["from step"] if stepped else []), right="step")
    for each in settings[:_SETTINGS_SHOWN]:
        step = ["" if each.step is None else str(each.step)] if stepped else []
        table.add_row(*(Text(printable(cell)) for cell in (each.name, each.a, each.b)), *step)
    show(console, table)
    if len(settings) > _SETTINGS_SHOWN:
        hang(console, Text(f"and {len(settings) - _SETTINGS_SHOWN} more (--format json has them all)", "dim"))


def _partings(partings: Sequence[Parting], looked_at: Sequence[str], console: Console) -> None:
    if not partings:
        return
    heading(console, "Beyond noise")
    shown = partings[:_PARTINGS_SHOWN]
    tensors = any(each.tensor for each in shown)
    titles = ("quantity", "steps", "A", "B", "noise")
    table = columns(*titles, *(["tensor"] if tensors else []), right="steps A B noise")
    for each in shown:
        cells = [each.metric, f"{each.step}–{each.until}", _number(each.a), _number(each.b), how_far(each)]
        table.add_row(*(Text(cell) for cell in cells), *([Text(_fitting(each.tensor, console))] if tensors else []))
    show(console, table)
    if len(partings) > len(shown):
        hang(console, Text(f"and {len(partings) - len(shown)} more (--format json has them all)", "dim"))
    hang(console, Text(f"looked for in {listed(list(looked_at), 6)}", "dim"))


def _fitting(tensor: str | None, console: Console) -> str:
    """The name in what the numbers leave of a line."""
    return shortened(printable(tensor or ""), min(max(console.width - _NUMBERS, 16), 60))


def _number(value: float) -> str:
    return number(float(f"{value:.4g}"))


def _curves(found: Comparison, a: RunLog, b: RunLog, console: Console) -> None:
    """Two lines of characters for each quantity that both have, on one scale, over the steps that both have."""
    step = parted_at(found)
    shown = drawn(found, a, b)
    curves = {name: tuple(_common(run, name, found) for run in (a, b)) for name in shown}
    curves = {name: sides for name, sides in curves.items() if all(len(steps) for steps, _ in sides)}
    ends = {name: [_ends(values) for _, values in sides] for name, sides in curves.items()}
    room = [max((len(side[end]) for both in ends.values() for side in both), default=0) for end in (0, 1)]
    for name, sides in curves.items():
        _curve(name, sides, ends[name], room, step, console)


def _common(run: RunLog, name: str, found: Comparison) -> Curve:
    series = run.series(name)
    inside = (series.steps >= found.first) & (series.steps <= found.last)
    return series.steps[inside], series.values[inside]


def _curve(
    name: str, sides: Sequence[Curve], ends: Sequence[tuple[str, str]], room: Sequence[int], step: int | None, console: Console
) -> None:
    width = min(console.width - sum(room) - 7, _WIDEST, int(sides[0][0][-1] - sides[0][0][0]) + 1)
    if width < _LEAST:
        return
    known = np.concatenate([values[np.isfinite(values)] for _, values in sides])
    between = (float(known.min()), float(known.max())) if len(known) else None
    console.print()
    console.print(Text(f"  {name}", "dim"))
    for label, (steps, values), (left, right) in zip("AB", sides, ends, strict=True):
        line = course(steps, values, width, between)
        console.print(Text.assemble("  ", (label, "bold"), f" {left:>{room[0]}} ", line, f" {right}"), soft_wrap=True)
    if step is not None:
        steps = sides[0][0]
        at = np.array([steps[0], np.clip(step, steps[0], steps[-1]), steps[-1]])
        console.print(Text(" " * (5 + room[0] + int(places(at, width)[1])) + _MARK, "bold yellow"), soft_wrap=True)


def _ends(values: Array) -> tuple[str, str]:
    """The first known value and the last value."""
    known = values[np.isfinite(values)]
    return _number(float(known[0]) if len(known) else float("nan")), _number(float(values[-1]))
