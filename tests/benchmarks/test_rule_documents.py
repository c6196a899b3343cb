"""docs/rules/ says what the rules say of themselves, and what was measured of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.score import pages
from stabkit.analyzers import ANALYZERS, measured
from stabkit.cli.choice import pages as rule_pages
from stabkit.finding import Severity
from stabkit.report.pages import RulePage

SPIKE = {"precision": 0.714, "low": 0.56, "high": 0.82, "findings": 75, "runs": 43}


def test_the_committed_pages_are_what_the_generator_writes() -> None:
    committed = {file.name: file.read_text(encoding="utf-8") for file in pages.FOLDER.iterdir()}
    assert committed == pages.documents(), "write them anew: python -m benchmarks.score.pages"


def test_every_rule_has_a_page_and_a_line_in_the_index() -> None:
    written = pages.documents()
    for analyzer in ANALYZERS:
        name = f"{analyzer.rule.code}-{analyzer.rule.name}.md"
        assert f"[{analyzer.rule.code}]({name})" in written["README.md"]
        assert written[name].startswith(f"# {analyzer.rule.code} {analyzer.rule.name}\n")
        assert "\n**Measured:** " in written[name]
        assert all(f"\n## {title}\n" in written[name] for title in pages.SECTIONS), name


def test_a_page_keeps_formulas_lists_and_signs() -> None:
    text = """\
What it reports:    a*b < c, |g| and _x_ of weight_decay, as `a*b`:
                        y = x * x
                    - one
                    - two
References:         None.
"""
    known: dict[str, Any] = {"code": "SK901", "name": "x", "severity": Severity.WARNING, "since": "0.1"}
    rule = RulePage(**known, docstring=text, measured="Not measured yet.")
    assert pages._page(rule) == (
        """\
# SK901 x

Warning, since 0.1. Needs any log.

**Measured:** Not measured yet.

## What it reports

a\\*b \\< c, |g| and \\_x\\_ of weight_decay, as `a*b`:

```text
y = x * x
```

- one
- two

## References

None.

[All rules](README.md)
"""
    )


def test_pages_of_rules_that_are_gone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "SK999-gone.md").write_text("")
    pages.write(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(pages.documents())


def test_what_was_measured_is_told_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"schema": 1, "part": "score", "rules": {"SK201": SPIKE}}))
    told = measured.sentence("SK201", file)
    assert told.startswith("Right in 71 % (95 % interval: 56 to 82 %) of 75 findings in 43 runs of known outcome: ")
    assert "optimistic" not in told and measured.sentence("SK202", file) == "Not measured yet."
    tuned = tmp_path / "tuned.json"
    tuned.write_text(json.dumps({"schema": 1, "part": "tune", "rules": {"SK201": SPIKE}}))
    assert "optimistic" in measured.sentence("SK201", tuned)
    monkeypatch.setattr("stabkit.analyzers.measured.sentence", lambda rule: told if rule == "SK201" else "Not measured yet.")
    assert next(page for page in rule_pages() if page.code == "SK201").measured == told
    written = pages.documents()
    assert f"**Measured:** {told}" in written["SK201-loss-spike.md"]
    assert "| right in 71 % |" in written["README.md"]


@pytest.mark.parametrize("contents", [None, "no json", "[]", '{"rules": {"SK201": {}}}', '{"rules": []}'])
def test_a_broken_file_of_measurements_measures_nothing(contents: str | None, tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    if contents is not None:
        file.write_text(contents)
    assert measured.sentence("SK201", file) == "Not measured yet."
