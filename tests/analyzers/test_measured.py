"""What was measured of a rule is told with its findings, and nothing is invented where nothing was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stabkit.analyzers import measured
from stabkit.analyzers.measured import confidences, with_confidence
from stabkit.finding import Finding, Severity

FOUND = Finding(rule="SK201", name="loss-spike", severity=Severity.WARNING, message="", first_step=1, last_step=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "measured.json"
    path.write_text(json.dumps({"rules": {"SK201": {"precision": 0.9, "low": 0.8, "high": 0.95}}}))
    return path


def test_a_measured_rule_says_how_often_it_was_right(file: Path) -> None:
    assert with_confidence(FOUND, file).confidence == (0.9, 0.8, 0.95)


def test_a_rule_that_was_not_measured_says_nothing(file: Path) -> None:
    assert with_confidence(replace(FOUND, rule="SK202"), file).confidence is None


def test_information_was_not_measured_and_a_confidence_given_stays(file: Path) -> None:
    assert with_confidence(replace(FOUND, severity=Severity.INFO), file).confidence is None
    assert with_confidence(replace(FOUND, confidence=(1.0, 1.0, 1.0)), file).confidence == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("text", [None, "", "[]", '{"rules": {"SK201": {}}}', '{"rules": 3}'])
def test_a_broken_file_costs_no_verdict(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "broken.json").write_text(text)
    assert confidences(tmp_path / "broken.json") == {}


def test_the_file_is_there_and_can_be_read() -> None:
    known = json.loads(measured.FILE.read_text())["rules"]
    assert confidences().keys() == known.keys()
    assert all(0 <= low <= right <= high <= 1 for right, low, high in confidences().values())
