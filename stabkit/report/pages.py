"""The catalogue of rules and the page of each: what the rule's own file says of itself, set for the terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.text import Text

from stabkit.finding import Severity
from stabkit.report.terminal import columns, hang, heading, show
from stabkit.report.words import count

__all__ = ["SECTIONS", "RulePage", "catalogue", "page", "paragraphs", "sections"]

SECTIONS = ("What it reports", "Why it matters", "How it decides", "Known false alarms", "What to try", "References")
"""The sections of every rule's page, in their order."""

_STYLE = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}
_SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):[ \t]*(.*)$")


@dataclass(frozen=True, kw_only=True)
class RulePage:
    """What is known of a rule before it has seen a run, as plain data.

    Attributes:
        code: Such as "SK101".
        name: Such as "missing-warmup".
        severity: The severity it usually finds.
        requires: The quantities it cannot do without, such as "update_ratio per tensor".
        min_steps: The number of steps below which it says nothing.
        since: The version it appeared in.
        docstring: Its page as written; "" where Python has thrown it away (`python -OO`).
        measured: How often it was right, in a sentence; "" where there is nothing to say of that.
    """

    code: str
    name: str
    severity: Severity
    requires: tuple[str, ...] = ()
    min_steps: int = 1
    since: str = ""
    docstring: str = ""
    measured: str = ""

    @property
    def needs(self) -> str:
        """What must be in a log before it says anything, in words."""
        steps = [f"at least {count(self.min_steps, 'step')}"] if self.min_steps > 1 else []
        return ", ".join([*self.requires, *steps]) or "any log"


def sections(docstring: str) -> dict[str, str]:
    """The text of each section of a page, by title; its lines keep their order and their relative indentation."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in docstring.splitlines():
        title = _SECTION.match(line)
        if title:
            lines = found.setdefault(title[1], [title[2]])
        else:
            lines.append(line)
    return {title: f"{first}\n{textwrap.dedent(chr(10).join(rest))}".strip() for title, (first, *rest) in found.items()}


def paragraphs(text: str) -> Iterator[tuple[str, bool]]:
    """The paragraphs of a section, and whether each is to be set as it stands (formulas, tables: what is indented).

    A line that begins with "- " opens a paragraph of its own, and indented lines after it belong to it.
    """
    for empty, group in groupby(text.splitlines(), key=lambda line: not line.strip()):
        if empty:
            continue
        words, item = "", False
        for line in group:
            if line.startswith(" ") and not item:
                if words:
                    yield words, False
                    words = ""
                yield line.rstrip(), True
                continue
            if line.startswith("- ") or (item and not line.startswith(" ")):
                if words:
                    yield words, False
                words, item = "", line.startswith("- ")
            words = f"{words} {line.strip()}".strip()
        if words:
            yield words, False


def page(rule: RulePage, console: Console) -> None:
    """Print a rule's page."""
    since = f", since {rule.since}" if rule.since else ""
    console.print(Text.assemble((f"{rule.code} {rule.name}  ", "bold"), (str(rule.severity), _STYLE[rule.severity]), since))
    text = sections(rule.docstring)
    for section in SECTIONS:
        if text.get(section):
            heading(console, section)
            for words, as_it_stands in paragraphs(text[section]):
                _paragraph(words, as_it_stands, console)
    heading(console, "What it needs")
    hang(console, rule.needs)
    if rule.measured:
        heading(console, "Measured")
        hang(console, rule.measured)
    if not text:
        heading(console, "This Python was told to drop docstrings (-OO), and the page with them.", "dim")


def _paragraph(words: str, as_it_stands: bool, console: Console) -> None:
    if as_it_stands:
        console.print(Text(f"  {words}"), soft_wrap=True)
    elif words.startswith("- "):
        hang(console, words[2:], "  - ", indent=4)
    else:
        hang(console, words)


def catalogue(rules: Sequence[RulePage], console: Console) -> None:
    """Print a table of all rules."""
    table = columns("code", "name", "severity", "what it reports")
    for column in table.columns[:3]:
        column.no_wrap = True
    for rule in rules:
        first = next(paragraphs(sections(rule.docstring).get("What it reports", "")), ("", False))[0]
        needs = Text(f"\nneeds {', '.join(rule.requires)}" if rule.requires else "", "dim")
        severity = Text(str(rule.severity), _STYLE[rule.severity])
        table.add_row(Text(rule.code, "bold"), Text(rule.name), severity, Text(first).append_text(needs))
    show(console, table, indent=0)
    console.print()
    console.print(Text("A rule's page: stabkit explain CODE", "dim"))
