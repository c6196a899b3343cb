"""The `stabkit` command: parses arguments, calls the library, turns errors into exit codes.

0: nothing at or above --fail-on. 1: findings. 2: usage. 3: nothing readable, or a rule named by --require could not run.
"""

from __future__ import annotations

import sys

import click

from stabkit import __version__
from stabkit.errors import StabkitError

__all__ = ["main"]


@click.group()
@click.version_option(__version__, prog_name="stabkit")
def commands() -> None:
    """Tells why a PyTorch training run becomes unstable: which tensor, which step, and what to change."""


@commands.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path())
def analyze(paths: tuple[str, ...]) -> None:
    """Judge saved runs."""
    from stabkit.analyzers import analyze as judge
    from stabkit.runlog import load

    code = 0
    for path in paths:
        diagnosis = judge(load(path))
        for finding in diagnosis.findings:
            click.echo(f"{finding.rule} {finding.name} step {finding.first_step}: {finding.message}")
        code = max(code, diagnosis.exit_code)
    sys.exit(code)


def main() -> None:
    """The console script."""
    try:
        commands()
    except StabkitError as error:
        click.echo(f"stabkit: {error}", err=True)
        sys.exit(3)
