"""What was fuzzed is put down as it goes: a run that is killed loses half a minute of its figures, and no other run any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.fuzz.ledger import RESULTS, Entry, Target, enter, entries, page

ONE = Entry(1, "2026-11-23", "3.13.0", 1200, 60, 5000, {"csv": Target(1200, 3, 2, 0.5, {"TooSlow at comma.py:9: x": 2})})


def test_a_seed_is_counted_once_and_others_are_left_alone(tmp_path: Path) -> None:
    enter(ONE, tmp_path)
    enter(replace(ONE, seed=2, inputs=300), tmp_path)
    enter(replace(ONE, inputs=2500), tmp_path)
    assert [(run.seed, run.inputs) for run in entries(tmp_path)] == [(1, 2500), (2, 300)]
    assert entries(tmp_path)[0] == replace(ONE, inputs=2500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FUZZ.md", "fuzz.json"]


def test_the_page_says_what_broke_and_how_much_was_tried_in_all(tmp_path: Path) -> None:
    enter(ONE, tmp_path)
    enter(replace(ONE, seed=2, inputs=300, targets={"csv": Target(300, 0, 0, 2.0)}), tmp_path)
    text = (tmp_path / "FUZZ.md").read_text()
    assert text.startswith("# Fuzzing the readers\n\n1,500 inputs")
    assert "| csv | 1,500 | 3 | 2 | 2.00 |" in text
    assert "- seed 1, csv: TooSlow at comma.py:9: x (2 times)" in text


def test_the_published_page_is_the_one_that_the_ledger_makes() -> None:
    assert (RESULTS / "FUZZ.md").read_text() == page(entries())
