"""Rule pages: the docstring of a rule's file, set for the terminal."""

from __future__ import annotations

from typing import Any

import pytest
import sample

from stabkit.analyzers import ANALYZERS
from stabkit.finding import Severity
from stabkit.report.pages import RulePage, catalogue, page, paragraphs, sections

ILL = RulePage(
    code="SK901",
    name="always-ill",
    severity=Severity.WARNING,
    requires=("loss", "weight_norm per tensor"),
    min_steps=20,
    since="0.1",
    docstring=sample.__doc__ or "",
)


def test_a_page_at_60_columns(draw: Any) -> None:
    assert draw(page, ILL, width=60) == (
        """\
SK901 always-ill  warning, since 0.1

What it reports
  Every run, so that there is something to print. Two
  sentences, on two lines.

Why it matters
  It does not.

How it decides
  By this formula:
      x > 1  and  y < 2
  - a first point, which goes on in a second line;
  - a second point.
  And a last sentence.

Known false alarms
  All of them.

What to try
  Note: a colon in a text opens no section.

References
  None.

What it needs
  loss, weight_norm per tensor, at least 20 steps
"""
    )


def test_the_catalogue_at_80_columns(draw: Any) -> None:
    bare = RulePage(code="SK902", name="x", severity=Severity.ERROR)
    assert draw(catalogue, [ILL, bare]) == (
        """\
code   name        severity  what it reports
SK901  always-ill  warning   Every run, so that there is something to print. Two
                             sentences, on two lines.
                             needs loss, weight_norm per tensor
SK902  x           error

A rule's page: stabkit explain CODE
"""
    )


def test_a_rule_whose_docstring_python_dropped_still_has_a_page(draw: Any) -> None:
    text = draw(page, RulePage(code="SK902", name="x", severity=Severity.ERROR))
    assert text.startswith("SK902 x  error\n\nWhat it needs\n  any log\n\n")
    assert text.endswith("This Python was told to drop docstrings (-OO), and the page with them.\n")


def test_a_section_may_begin_on_the_line_after_its_title() -> None:
    assert sections("What to try:\n    - one\n    - two\n\nReferences: a") == {
        "What to try": "- one\n- two",
        "References": "a",
    }
    assert list(paragraphs("- one\n- two")) == [("- one", False), ("- two", False)]


@pytest.mark.parametrize("analyzer", ANALYZERS, ids=lambda analyzer: analyzer.rule.code)
@pytest.mark.parametrize("width", [80, 120])
def test_every_rule_of_the_catalogue_can_be_read(analyzer: Any, width: int, draw: Any) -> None:
    import sys

    docstring = sys.modules[type(analyzer).__module__].__doc__ or ""
    rule = analyzer.rule
    text = draw(page, RulePage(code=rule.code, name=rule.name, severity=rule.severity, docstring=docstring), width=width)
    assert "How it decides\n  " in text
    assert all(len(line) <= width for line in text.splitlines())
