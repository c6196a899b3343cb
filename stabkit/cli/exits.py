"""Errors as a user meets them: one line on standard error and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

import click

from stabkit.errors import StabkitError, UsageError
from stabkit.report.encoding import speak_any_encoding
from stabkit.report.words import printable

__all__ = ["Commands", "complain", "run_as_program", "told"]


class _Refused(click.ClickException):
    """An error as a user meets it: one line, an exit code, no traceback."""

    exit_code = 3

    def show(self, file: Any = None) -> None:
        complain(self.message)


class _Misused(_Refused):
    """An error of the user's."""

    exit_code = 2


class Commands(click.Group):
    """Commands that may raise whatever the library raises."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            raise (_Misused if isinstance(error, UsageError) else _Refused)(told(error)) from error


def told(error: Exception, path: str = "") -> str:
    """What to tell of an error: a sentence of ours, the system's, or that it should not have happened."""
    if isinstance(error, StabkitError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or path or 'the output'}: {error.strerror or error}"
    if sys.flags.dev_mode:  # somebody wants to see where
        raise error
    what = f"a fault of stabkit itself ({type(error).__name__}: {error})"
    return f"{path}: {what}. Please report it, with what `python -X dev -m stabkit ...` prints".removeprefix(": ")


def complain(message: str) -> None:
    """Say one line on standard error."""
    sys.stdout.flush()  # so that both stay in order where they go to the same file
    click.echo(f"stabkit: {printable(message)}", err=True)


def run_as_program(commands: Callable[..., Any]) -> NoReturn:
    """Run the commands on the arguments of this process, and end it with their exit code."""
    speak_any_encoding()
    stdout = sys.stdout
    if not sys.warnoptions:  # NumPy's remarks on what a log holds are no news to the reader of a report
        warnings.simplefilter("ignore")
    try:
        code = _run(commands)
        sys.stdout.flush()  # here, where a closed pipe can still be answered
    except (BrokenPipeError, SystemExit):  # click answers a closed pipe with SystemExit; nothing else in here exits
        _abandon(stdout)
        code = 141
    except OSError as error:  # a full disk
        _abandon(stdout)
        complain(told(error))
        code = 3
    sys.exit(code)


def _run(commands: Callable[..., Any]) -> int:
    try:
        return int(commands(prog_name="stabkit", standalone_mode=False) or 0)
    except click.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code


def _abandon(stdout: TextIO) -> None:
    """Send what is left in the buffer nowhere, so that Python does not complain of it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
