"""A rule that raises is told as "failed", live and afterwards; the others judge as they do without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stabkit
from stabkit.analyzers import ANALYZERS, Analyzer, analyze
from stabkit.finding import Diagnosis, Finding, Status
from tests.breaking.injection import Injected, broken, functions_of
from tests.cases import load_case
from tests.live.live_training import BAD, told_codes, train

SICK = ("falling_scale", "growing_until_nan")
GUARD = {
    "stabkit.analyzers.analyze": "is what must not raise",
    "stabkit.analyzers._gathered": "holds the guards",
    "stabkit.analyzers.judge": "the guard of a rule",
    "stabkit.analyzers._missing": "words for what a log lacks",
}
"""What stands outside of every guard."""
FUNCTIONS = functions_of("stabkit.analyzers")


def codes(diagnosis: Diagnosis) -> set[tuple[str, int]]:
    def of(finding: Finding) -> Iterator[tuple[str, int]]:
        yield finding.rule, finding.first_step
        for consequence in finding.consequences:
            yield from of(consequence)

    return {code for finding in diagnosis.findings for code in of(finding)}


def failed(diagnosis: Diagnosis) -> set[str]:
    return {outcome.rule for outcome in diagnosis.outcomes if outcome.status is Status.FAILED}


class Breaking:
    """A rule that raises at once, or after its first findings."""

    def __init__(self, rule: Analyzer, late: bool) -> None:
        self.rule, self._whole, self._late = rule.rule, rule, late

    def analyze(self, run: Any) -> Iterator[Finding]:
        if self._late:
            yield from self._whole.analyze(run)
        raise Injected("a rule that breaks")


@pytest.mark.parametrize("late", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["at once", "after its findings"])
def test_each_rule_that_raises_is_failed_and_the_others_judge(late: bool) -> None:
    run = load_case("growing_until_nan")
    whole = analyze(run)
    assert not failed(whole) and len({code for code, _ in codes(whole)}) > 1
    for index, rule in enumerate(ANALYZERS):
        judged = analyze(run, (*ANALYZERS[:index], Breaking(rule, late), *ANALYZERS[index + 1 :]))
        could_judge = whole.outcome(rule.rule.code).status is not Status.NOT_APPLICABLE or failed(judged)
        assert failed(judged) == ({rule.rule.code} if could_judge else set())
        if could_judge:
            assert judged.outcome(rule.rule.code).reason == "Injected: a rule that breaks"
        assert codes(judged) == {found for found in codes(whole) if found[0] != rule.rule.code}


@pytest.mark.slow
@pytest.mark.parametrize("case", SICK)
def test_any_function_of_the_rules_may_raise(case: str) -> None:
    run, reached = load_case(case), 0
    whole = codes(analyze(run))
    for name, function in FUNCTIONS.items():
        if name in GUARD:
            continue
        run.memo.clear()
        with broken(function) as raised:
            diagnosis = analyze(run)
        reached += bool(raised)
        assert len(diagnosis.outcomes) == len(ANALYZERS), name
        told = failed(diagnosis) or any("injected into" in note for note in diagnosis.notes)
        assert not raised or told or codes(diagnosis) == whole, name
    assert reached > 100


def test_the_guard_of_the_rules_is_small_and_exists() -> None:
    assert set(GUARD) <= set(FUNCTIONS) and len(GUARD) <= 4


@pytest.mark.slow
def test_a_rule_that_raises_does_not_stop_live_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process that judges, two rules are broken from its start; the NaN is found by a third."""
    (tmp_path / "sitecustomize.py").write_text(
        "import stabkit.analyzers as rules\n"
        "def fail(self, run):\n    raise RuntimeError('a rule that breaks')\n"
        "for rule in rules.ANALYZERS:\n"
        "    if rule.rule.code in ('SK201', 'SK202'):\n        type(rule).analyze = fail\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    told: list[Finding] = []
    weights = train(tmp_path / "run", 100, told.append, bad=BAD)
    assert {name: str(value) for name, value in weights.items()} == {
        name: str(value) for name, value in train(tmp_path / "none", 100, bad=BAD, watched=False).items()
    }
    assert "SK301" in told_codes(told)
    assert not [event for event in stabkit.load(tmp_path / "run").events if event["event"].startswith("live_")]
