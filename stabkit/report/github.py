"""Findings as annotations of a GitHub workflow: what a step prints and GitHub shows beside the run.

    ::warning title=SK201 loss-spike::runs/exp1, step 7: loss rose to 9. Try: ...

An error is an error, a warning a warning, information a notice. A line without `::` per run says how much was looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stabkit.finding import Diagnosis, Finding, Severity
from stabkit.report.json import Unreadable
from stabkit.report.text import summary
from stabkit.report.words import printable

__all__ = ["render"]

_COMMAND = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def render(runs: Iterable[Diagnosis | Unreadable]) -> str:
    """The lines, without a newline at their end."""
    return "\n".join(line for run in runs for line in _lines(run))


def _lines(run: Diagnosis | Unreadable) -> Iterator[str]:
    if isinstance(run, Unreadable):
        yield _annotation("error", "stabkit", f"{run.path}: {run.error}")
        return
    yield summary(run).plain.replace("::", ": :")  # a path could hold a command
    for finding in run.findings:
        yield _annotation(_COMMAND[finding.severity], f"{finding.rule} {finding.name}", _told(run, finding))


def _told(run: Diagnosis, finding: Finding) -> str:
    advice = f" Try: {finding.advice}" if finding.advice else ""
    led = "; ".join(f"{each.rule} {each.name} at step {each.first_step}" for each in finding.consequences)
    return f"{run.path}, step {finding.first_step}: {finding.message}.{advice}" + (f" Led to {led}." if led else "")


def _annotation(command: str, title: str, text: str) -> str:
    escaped = printable(title).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    return f"::{command} title={escaped}::{printable(text).replace('%', '%25')}"
