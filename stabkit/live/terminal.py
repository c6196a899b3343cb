"""`stabkit analyze --follow`: each finding of a log that is still being written, as it appears."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import click
from rich.console import Console

from stabkit.analyzers import ANALYZERS, Analyzer
from stabkit.errors import NotALogError, UsageError
from stabkit.finding import Diagnosis, Finding
from stabkit.live.follow import Follower
from stabkit.report.json import line
from stabkit.report.text import show_finding, summary

__all__ = ["follow"]

SHORTEST_PAUSE = 0.5
"""Seconds between two looks; nobody reads faster."""
SHARE = 0.25
"""How much of one core the looks may take."""


def follow(
    path: str,
    analyzers: Sequence[Analyzer],
    attempt: int | None,
    console: Console | None,
    complain: Callable[[str], None],
    wait: bool,
) -> Diagnosis | None:
    """Print findings until the run has closed its log, or until Ctrl-C.

    Args:
        path: The run's directory.
        analyzers: The rules.
        attempt: Which attempt; the last one by default, also where a new one begins.
        console: Where to print text; None prints a JSON document per line.
        complain: Given sentences that are no findings.
        wait: Whether to wait for a log that is not there yet. One that was there and is gone is always waited for.

    Returns:
        The diagnosis of the last look, None where there was none.

    Raises:
        UsageError: the log lies behind a URL.
        NotALogError: there is no log, and it is not to be waited for.
        LogVersionError: written in a format this version does not know.
    """
    if "://" in path:
        raise UsageError("--follow follows a directory of this machine, not a URL")
    follower = Follower(path, analyzers, attempt)
    if console:
        complain(f"following {path}; Ctrl-C ends")
    try:
        _until_it_ends(follower, console, complain, wait)
    except KeyboardInterrupt:
        complain(f"stopped following {path}; it may go on")
    if console and follower.diagnosis:
        console.print()
        console.print(summary(follower.diagnosis, len(ANALYZERS) - len(analyzers)), soft_wrap=not console.is_terminal)
    return follower.diagnosis


def _until_it_ends(follower: Follower, console: Console | None, complain: Callable[[str], None], wait: bool) -> None:
    gone = False
    while True:
        try:
            for finding in follower.look():
                _show(finding, follower, console)
            gone = False
        except (NotALogError, FileNotFoundError) as error:
            if follower.diagnosis is None and not wait:
                raise NotALogError(f"{error} To wait until there is one, add --wait.") from error
            if not gone:
                complain(f"{error} Waiting for it; Ctrl-C ends")
            gone = True
        if follower.ended and not gone:
            return
        time.sleep(max(SHORTEST_PAUSE, follower.cost * (1 / SHARE - 1)))


def _show(finding: Finding, follower: Follower, console: Console | None) -> None:
    assert follower.diagnosis is not None
    if console:
        show_finding(finding, console)
    else:
        click.echo(line(follower.diagnosis, finding))
    sys.stdout.flush()  # whoever reads a pipe wants it now
