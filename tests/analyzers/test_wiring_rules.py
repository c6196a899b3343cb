"""The rules on wiring, on loops trained here and now: mistakes are found, healthy twins are clear, verdicts are causal."""

from __future__ import annotations

from pathlib import Path

import pytest
from analyzer_runs import flat

import stabkit
from stabkit.analyzers import ANALYZERS, analyze, judge
from stabkit.finding import Severity, Status
from tests.cases.wiring import WiringCase, parameters, scaling, schedules
from tests.cases.wiring.loop import IMPLEMENTATIONS

CASES: dict[str, WiringCase] = {**scaling.CASES, **schedules.CASES, **parameters.CASES}
RULES = {analyzer.rule.code: analyzer for analyzer in ANALYZERS}
each = pytest.mark.parametrize("name", CASES)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@each
@implementations
def test_the_mistake_is_found_at_its_step(name: str, implementation: str, tmp_path: Path) -> None:
    case = CASES[name]
    run = case.sick(implementation, tmp_path)
    outcome = judge(RULES[case.rule], run)
    assert outcome.status is Status.FOUND, outcome
    first = outcome.findings[0]
    assert first.first_step == case.first_step
    assert case.tensor is None or first.tensors[0] == case.tensor
    assert "\n" not in first.message and len(first.message) < 160
    assert any(c.isdigit() for c in first.message) and "step" in first.message
    assert first.evidence and first.advice
    before = judge(RULES[case.rule], run.until(first.first_step - 1))
    live = judge(RULES[case.rule], run.until(first.first_step))
    assert before.status is not Status.FOUND
    assert [f.first_step for f in live.findings] == [first.first_step]


@each
@implementations
def test_the_healthy_twin_is_looked_at_and_clear(name: str, implementation: str, tmp_path: Path) -> None:
    case = CASES[name]
    run = case.healthy(implementation, tmp_path)
    assert judge(RULES[case.rule], run).status is Status.CLEAR
    alarms = [f for f in flat(analyze(run)) if f.severity >= Severity.WARNING]
    assert not alarms, alarms
    assert not [event for event in run.events if event["event"] == "fault"]


def test_a_mistake_and_nothing_else_is_blamed(tmp_path: Path) -> None:
    """Of all the rules, at warning and above, only the case's own speaks: each mistake has one name."""
    wrong: list[str] = []
    for name, case in CASES.items():
        run: stabkit.RunLog = case.sick("foreach", tmp_path / name.replace(" ", "-"))
        others = {f.rule for f in flat(analyze(run)) if f.severity >= Severity.WARNING} - {case.rule}
        wrong += [f"{name}: {sorted(others)}"] if others else []
    assert not wrong, "\n".join(wrong)


def test_every_rule_on_wiring_has_a_case() -> None:
    assert {case.rule for case in CASES.values()} == {code for code in RULES if code.startswith("SK4")} | EXTRA


EXTRA: set[str] = {code for code in ("SK105", "SK306") if code in RULES}
"""Rules of other families whose sick and healthy runs are such loops too."""
