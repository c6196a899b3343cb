"""The terminal itself: a console on a stream, text that hangs behind its label, tables without lines.

Whoever draws takes the console as an argument, so that a test can hand in one of any width.
"""

from __future__ import annotations

from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["columns", "hang", "heading", "open_console", "show"]

_WIDEST = 110
"""Longer lines tire the eye, however wide the window is."""


class _Console(Console):
    """A console that leaves a closed pipe to the command line, which knows the exit code."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def open_console(file: IO[str]) -> Console:
    """A console on a stream; without a terminal behind it there are no colours, and NO_COLOR is obeyed."""
    console = _Console(file=file, highlight=False, emoji=False, markup=False)
    console.width = min(console.width, _WIDEST)
    return console


def heading(console: Console, title: str, style: str = "bold") -> None:
    """A line that opens a section, after an empty one."""
    console.print()
    console.print(Text(title, style))


def hang(console: Console, text: Text | str, label: Text | str = "", indent: int = 2) -> None:
    """Print a paragraph behind its label.

    Args:
        console: Where to.
        text: The paragraph.
        label: What stands in the indentation of its first line.
        indent: How far the paragraph is moved to the right.
    """
    margin, body = (Text(part) if isinstance(part, str) else part for part in (label, text))
    lines = body.wrap(console, max(console.width - indent, 12), overflow="fold")
    for line in lines:
        line.rstrip()
        gap = " " * max(indent - margin.cell_len, 0)
        console.print(Text.assemble(margin, gap, line) if line.plain else margin, soft_wrap=True)
        margin = Text()


def columns(*titles: str, right: str = "", **options: Any) -> Table:
    """An empty table without lines; the titles in `right`, separated by blanks, are those of columns of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", **options)
    for title in titles:
        numbers = title in right.split()
        table.add_column(title, justify="right" if numbers else "left", no_wrap=numbers, overflow="fold")
    return table


def show(console: Console, table: Table, indent: int = 2) -> None:
    """Print a table moved to the right, without blanks at the ends of its lines."""
    room = console.options.update(width=max(console.width - indent, 20))
    for segments in console.render_lines(table, room, pad=False):
        line = Text.assemble(*((segment.text, segment.style or "") for segment in segments if not segment.control))
        line.rstrip()
        console.print(Text(" " * indent).append_text(line) if line.plain else "", soft_wrap=True)
