"""The `stabkit` command: parses arguments, calls the library, turns errors into exit codes.

    0  nothing at or above --fail-on
    1  findings
    2  usage
    3  nothing readable, or a rule named by --require could not run

With several paths the highest counts: a run that could not be judged outweighs one that was judged and found ill. As
with any program, 130 is an interruption (Ctrl-C) and 141 a pipe whose reader went away. Nothing heavy is imported until
a command needs it, so that --help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from stabkit import __version__
from stabkit.cli.choice import Words, chosen, pages, similar
from stabkit.cli.exits import Commands, complain, run_as_program
from stabkit.errors import StabkitError, UsageError
from stabkit.finding import Diagnosis, Severity, Status

if TYPE_CHECKING:
    from rich.console import Console

    from stabkit.report.json import Unreadable

__all__ = ["commands", "main"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stabkit")
def commands() -> None:
    """Tells why a PyTorch training run becomes unstable: which tensor, which step, and what to change."""


_attempt = click.option("--attempt", type=click.IntRange(0), metavar="N", help="Which, from 0; the last by default.")
_map = click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="QUANTITY=COLUMN",
    help="In logs of other tools: where to find a quantity, such as loss=train/ce; nothing after = for nowhere.",
)


@commands.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option(
    "--format",
    type=click.Choice(["text", "json", "html", "github", "sarif"]),
    default="text",
    show_default=True,
    help="What to print: for people; for machines; one run as a page; annotations for a workflow of GitHub; SARIF 2.1.0.",
)
@click.option("--select", multiple=True, metavar="CODES", help="Ask only these rules, such as SK101,missing-warmup,SK2.")
@click.option("--ignore", multiple=True, metavar="CODES", help="Do not ask these rules.")
@click.option("--require", multiple=True, metavar="CODES", help="Exit with 3 where one of these rules could not look.")
@click.option(
    "--fail-on",
    type=click.Choice([str(severity) for severity in Severity]),
    default="warning",
    show_default=True,
    help="Exit with 1 for a finding of this severity or a higher one.",
)
@_attempt
@_map
@click.option("--follow", is_flag=True, help="Print the findings of a run that goes on, as they appear.")
@click.option("--wait", is_flag=True, help="With --follow: wait for a log that is not there yet.")
def analyze(
    paths: Words, format: str, fail_on: str, attempt: int | None, mapping: Words, follow: bool, wait: bool, **rules: Words
) -> None:
    """Judge saved runs, or with --follow one that is still going on.

    Tells what went wrong, in which tensor, at which step, and what to change; or how much of it could be looked at. A PATH
    is a log of stabkit, a log of another tool (TensorBoard, CSV, JSON lines, trainer_state.json, text, gzip or not), or a
    directory of any of these.

    Exit codes: 0 nothing at or above --fail-on; 1 findings; 2 usage; 3 nothing readable, or a rule named by --require
    could not look. Of several paths the highest counts. --follow ends with the run, or by Ctrl-C, with the code of what
    was found until then.
    """
    from stabkit.cli.progress import one_by_one
    from stabkit.cli.several import Task, judge_all
    from stabkit.report.text import report, tally

    asked, required, left_out = chosen(**rules)
    threshold = Severity[fail_on.upper()]
    runs: list[Diagnosis | Unreadable] = []
    columns = _columns(mapping)
    code = 0
    if wait > follow or follow > (len(paths) == 1):
        raise click.UsageError("--wait goes with --follow, and --follow with one run")
    if follow and format not in ("text", "json"):
        raise click.UsageError(f"--follow prints text or json, not {format}")
    if follow:
        from stabkit.live.terminal import follow as go_along

        last = go_along(paths[0], asked, attempt, _console() if format == "text" else None, complain, wait)
        click.get_current_context().exit(_code(last, threshold, required) if last else 3)
    found = list(_each(paths, columns))
    if format == "html" and len(found) > 1:
        raise click.UsageError(f"a page is about one run, not {len(found)}. Write each: stabkit report PATH -o FILE")
    for judged in one_by_one(judge_all(found, Task(attempt, asked, columns)), found):
        run, log, failure = judged.run, judged.log, judged.code
        if not isinstance(run, Diagnosis):
            complain(run.error)
        if isinstance(run, Diagnosis):
            failure = _code(run, threshold, required)
            if format == "text":
                click.echo("\n" if runs else "", nl=False)
                report(run, _console(), left_out, log)
            elif format == "html" and log is not None:
                click.echo(import_module("stabkit.report.html").page(log, run, left_out), nl=False)
        runs.append(run)
        code = max(code, failure)
    if format in ("json", "github", "sarif"):
        click.echo(import_module(f"stabkit.report.{format}").render(runs))
    elif format == "text" and len(runs) > 1:
        tally([run for run in runs if isinstance(run, Diagnosis)], len(runs), _console())
    click.get_current_context().exit(code)


@commands.command()
@click.argument("path", type=click.Path())
@click.option("-o", "--output", type=click.Path(dir_okay=False), default="report.html", show_default=True, help="- prints it.")
@click.option("--select", multiple=True, metavar="CODES", help="Ask only these rules, such as SK101,missing-warmup,SK2.")
@click.option("--ignore", multiple=True, metavar="CODES", help="Do not ask these rules.")
@_attempt
@_map
def report(path: str, output: str, select: Words, ignore: Words, attempt: int | None, mapping: Words) -> None:
    """Write a run as one HTML file that needs nothing else.

    Verdict, timeline, heatmap of the tensors, findings with their plots, and what could not be checked.
    """
    from stabkit.analyzers import analyze as judge
    from stabkit.cli.progress import working
    from stabkit.report.html import page
    from stabkit.sources import load

    asked, _, left_out = chosen(select, ignore, ())
    with working(f"judging and drawing {path}"):
        run = load(path, attempt, _columns(mapping))
        text = page(run, judge(run, asked), left_out)
    with click.open_file(output, "w", encoding="utf-8", atomic=True) as file:
        file.write(text)
    if output != "-":
        click.echo(f"{output}: {len(text.encode()) / 1e3:,.0f} kB")


@commands.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="What to print.")
@click.option("--html", type=click.Path(dir_okay=False), metavar="FILE", help="Also write it as one HTML file.")
@click.option("--attempts", type=(click.IntRange(0), click.IntRange(0)), metavar="M N", help="Which of A and of B, from 0.")
@_map
def compare(a: str, b: str, format: str, html: str | None, attempts: tuple[int, int] | None, mapping: Words) -> None:
    """Tell where two runs part, in what, and what was set differently.

    Runs of one seed are the same, number for number, up to the first step at which anything differs: that step and what in
    it differs first are told. Any others are held against the noise each has by itself.

    Exit codes: 0 the runs are the same, or differ by noise only; 1 they part; 2 usage; 3 nothing readable, nothing in
    common, or too few steps to tell.
    """
    from stabkit.cli.progress import working
    from stabkit.compare import compare as hold_together
    from stabkit.sources import load

    if a == b and (attempts is None or attempts[0] == attempts[1]):
        raise UsageError(f"{a} is the same run twice. Two attempts of one run: --attempts 0 1")
    first, second = attempts or (None, None)
    columns = _columns(mapping)
    with working(f"comparing {a} and {b}"):
        runs = load(a, first, columns), load(b, second, columns)
        found = hold_together(*runs)
    if html:
        text = import_module("stabkit.compare.html").page(found, *runs)
        with click.open_file(html, "w", encoding="utf-8", atomic=True) as file:
            file.write(text)
    if format == "json":
        click.echo(import_module("stabkit.compare.json").render(found))
    else:
        import_module("stabkit.compare.text").report(found, *runs, _console())
    if html and html != "-":
        click.echo(f"{html}: {len(text.encode()) / 1e3:,.0f} kB", err=format == "json")
    click.get_current_context().exit(found.exit_code)


@commands.command()
def rules() -> None:
    """List all rules."""
    from stabkit.report.pages import catalogue

    catalogue(pages(), _console())


@commands.command()
@click.argument("rule")
def explain(rule: str) -> None:
    """Show the page of a rule, given its code or its name."""
    from stabkit.report.pages import page

    known = pages()
    meant = [p for p in known if rule.lower() in (p.code.lower(), p.name)]
    if not meant:
        near = similar(rule, {p.code: p.name for p in known})
        raise UsageError(f"there is no rule {rule}{near}. List them all with: stabkit rules")
    page(meant[0], _console())


@commands.command()
@click.argument("path", type=click.Path())
@_attempt
@_map
def info(path: str, attempt: int | None, mapping: Words) -> None:
    """Tell what was recorded, by what, and how complete it is; of another tool's log, which column was taken for what."""
    from stabkit.report.info import info as describe
    from stabkit.sources import load

    run = load(path, attempt, _columns(mapping))
    earlier = [load(path, index, _columns(mapping)) for index in range(run.attempt)]
    files = [Path(path)] if Path(path).is_file() else Path(path).rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    describe([*earlier, run], size, _console())


@commands.command()
@click.option("--directory", type=Path, default="runs/demo", show_default=True, help="Where to record.")
@click.option("--steps", type=click.IntRange(30), default=200, show_default=True, help="Steps of each run.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of initialisation and data order.")
def demo(directory: Path, steps: int, seed: int) -> None:
    """Train a small real model with and without a warmup, and judge both."""
    from stabkit.analyzers import ANALYZERS
    from stabkit.cli.several import Task
    from stabkit.demo import demo as train
    from stabkit.report.text import report

    for path in train(directory, seed, steps, click.echo):
        click.echo()
        judged = Task(None, ANALYZERS, {}).judge(str(path))
        if isinstance(judged.run, Diagnosis):
            report(judged.run, _console(), 0, judged.log)
    click.echo(f"\nLook at both: tensorboard --logdir {directory}\nJudge again:  stabkit analyze {directory}/*")


def _console() -> Console:
    from stabkit.report.terminal import open_console

    return open_console(sys.stdout)


def _each(paths: Words, columns: Mapping[str, str]) -> Iterator[str]:
    """The runs at the paths: a directory stands for all that are in it."""
    from stabkit.sources import runs_in

    for path in paths:
        try:
            yield from runs_in(path, columns)
        except StabkitError:
            yield path  # whoever loads it will meet the same and tell


def _columns(mapping: Words) -> dict[str, str]:
    """The columns by quantity of --map."""
    for word in mapping:
        if "=" not in word:
            raise click.BadParameter(f"{word!r} is not of the form QUANTITY=COLUMN", param_hint="--map")
    return {quantity.strip(): column for quantity, _, column in (word.partition("=") for word in mapping)}


def _code(run: Diagnosis, threshold: Severity, required: Words) -> int:
    """The exit code of a diagnosis; tells which required rules could not look."""
    for outcome in run.outcomes:
        if outcome.rule in required and outcome.status in (Status.NOT_APPLICABLE, Status.FAILED):
            complain(f"{run.path}: {outcome.rule} {outcome.name} is required and could not look: {outcome.reason}")
    return run.exit_code_for(threshold, required) if run.steps else 3


def main() -> NoReturn:
    """The console script."""
    run_as_program(commands)
