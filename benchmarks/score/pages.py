"""`python -m benchmarks.score.pages`: writes docs/rules/, a page per rule from its own file and what was measured of it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.score.markdown import table
from stabkit.cli.choice import pages as rule_pages
from stabkit.report.pages import SECTIONS, RulePage, paragraphs, sections

__all__ = ["FOLDER", "documents", "write"]

FOLDER = Path(__file__).parents[2] / "docs" / "rules"
INDEX = "README.md"
MARKUP = re.compile(r"[*<\[\]~]|(?<!\w)_|_(?!\w)")


def documents() -> dict[str, str]:
    """The text of every file of the folder, by name."""
    rules = rule_pages()
    return {INDEX: _index(rules), **{_file(rule): _page(rule) for rule in rules}}


def write(folder: Path = FOLDER) -> None:
    """Write them all; a page of a rule that is gone is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    written = documents()
    for old in folder.glob("*.md"):
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")


def _file(rule: RulePage) -> str:
    return f"{rule.code}-{rule.name}.md"


def _index(rules: Sequence[RulePage]) -> str:
    rows = [
        (f"[{rule.code}]({_file(rule)})", rule.name, rule.severity, _inline(_summary(rule)), _inline(_share(rule)))
        for rule in rules
    ]
    return (
        "# Rules\n\nWritten by `python -m benchmarks.score.pages`; `stabkit explain CODE` shows the same. How a finding is "
        "told right from wrong: [ACCURACY.md](../../benchmarks/results/ACCURACY.md).\n\n"
        f"{table(('code', 'name', 'severity', 'what it reports', 'measured'), rows)}\n"
    )


def _summary(rule: RulePage) -> str:
    return next(paragraphs(sections(rule.docstring).get("What it reports", "")), ("", False))[0]


def _share(rule: RulePage) -> str:
    known = re.match(r"Right in (\d+ %)", rule.measured)
    return f"right in {known[1]}" if known else "not yet"


def _page(rule: RulePage) -> str:
    text = sections(rule.docstring)
    parts = [
        f"# {rule.code} {rule.name}",
        f"{str(rule.severity).capitalize()}, since {rule.since}. Needs {_inline(rule.needs)}.",
        f"**Measured:** {_inline(rule.measured)}",
    ]
    for title in SECTIONS:
        if text.get(title):
            parts += [f"## {title}", *_blocks(text[title])]
    return "\n\n".join([*parts, f"[All rules]({INDEX})"]) + "\n"


def _blocks(text: str) -> Iterator[str]:
    """A paragraph, a list, or lines that stand as they are."""

    def kind(paragraph: tuple[str, bool]) -> str:
        words, as_it_stands = paragraph
        return "lines" if as_it_stands else "list" if words.startswith("- ") else "words"

    for what, group in groupby(paragraphs(text), key=kind):
        lines = [words for words, _ in group]
        if what == "lines":
            yield f"```text\n{textwrap.dedent(chr(10).join(lines))}\n```"
        elif what == "list":
            yield "\n".join(map(_inline, lines))
        else:
            yield from map(_inline, lines)


def _inline(words: str) -> str:
    """Words in which nothing but code between backticks is markup."""
    parts = re.split(r"(`[^`]*`)", words)
    return "".join(part if part.startswith("`") else re.sub(MARKUP, r"\\\g<0>", part) for part in parts)


if __name__ == "__main__":
    write()
