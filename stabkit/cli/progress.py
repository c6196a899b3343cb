"""Says on a terminal's standard error that long work goes on: what is done, how far, for how long. It leaves no trace."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["one_by_one", "working"]

DELAY = 1.0
"""Seconds before anything is shown: what is done soon needs no bar."""
_LONGEST = 50

_Result = TypeVar("_Result")


@contextmanager
def working(what: str, done: int = 0, of: int = 0) -> Iterator[None]:
    """Shows a bar while the block runs, where somebody looks at it.

    Args:
        what: What is being done.
        done: How many of several things are done.
        of: How many there are; fewer than two make a bar that only moves.
    """
    if not sys.stderr.isatty():
        yield
        return
    shown: list[Progress] = []
    over = threading.Event()
    watcher = threading.Thread(target=_show, args=(what, done, of, shown, over), name="stabkit-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        for progress in shown:
            progress.stop()


def one_by_one(results: Iterable[_Result], names: Sequence[str]) -> Iterator[_Result]:
    """The results, one of each name, with a bar while the next one is waited for."""
    waiting = iter(results)
    for done, name in enumerate(names):
        with working(f"judging {name}", done, len(names)):
            result = next(waiting)
        yield result


def _show(what: str, done: int, of: int, shown: list[Progress], over: threading.Event) -> None:
    if over.wait(DELAY):
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from stabkit.report.words import printable, shortened

    console = Console(stderr=True, highlight=False)
    if console.is_dumb_terminal:
        return
    count = (MofNCompleteColumn(),) if of > 1 else ()
    text = TextColumn("{task.description}", markup=False)
    progress = Progress(text, BarColumn(20), *count, TimeElapsedColumn(), console=console, transient=True)
    progress.add_task(shortened(printable(what), _LONGEST), total=of if of > 1 else None, completed=done)
    progress.start()
    shown.append(progress)
