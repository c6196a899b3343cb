"""The rules on recordings of real trainings: the sick ones are found, their healthy twins are clear."""

from __future__ import annotations

import pytest
from analyzer_runs import flat

from stabkit.analyzers import ANALYZERS, analyze
from stabkit.finding import Diagnosis, Finding, Severity, Status
from tests.cases import DATA, load_case
from tests.cases.recipes import CASES
from tests.cases.wiring import parameters, scaling, schedules

WIRING = {**scaling.CASES, **schedules.CASES, **parameters.CASES}  # trained anew in test_wiring_rules
DIAGNOSES: dict[str, Diagnosis] = {}


def diagnosis(name: str) -> Diagnosis:
    if name not in DIAGNOSES:
        DIAGNOSES[name] = analyze(load_case(name))
    return DIAGNOSES[name]


EXPECTED = [(name, rule, *expectation) for name, case in CASES.items() for rule, expectation in case.expect.items()]


@pytest.mark.parametrize(("name", "rule", "earliest", "latest", "tensor"), EXPECTED)
def test_the_sickness_is_found_at_its_step(name: str, rule: str, earliest: int, latest: int, tensor: str | None) -> None:
    first = next(f for f in flat(diagnosis(name)) if f.rule == rule)
    assert earliest <= first.first_step <= latest
    assert tensor is None or first.tensors[0] == tensor


@pytest.mark.parametrize(("name", "rule"), [row[:2] for row in EXPECTED])
def test_the_healthy_twin_is_looked_at_and_clear(name: str, rule: str) -> None:
    assert diagnosis(CASES[name].twin).outcome(rule).status is Status.CLEAR


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.clean])
def test_a_healthy_run_has_nothing_of_warning_or_above(name: str) -> None:
    assert diagnosis(name).exit_code == 0
    assert [f.rule for f in flat(diagnosis(name))] == list(CASES[name].expect)


@pytest.mark.parametrize("name", CASES)
def test_every_finding_is_readable_and_every_rule_answers(name: str) -> None:
    assert all(outcome.status is not Status.FAILED for outcome in diagnosis(name).outcomes)
    for finding in flat(diagnosis(name)):
        assert "\n" not in finding.message and len(finding.message) < 160
        assert any(c.isdigit() for c in finding.message) and "step" in finding.message
        assert any(c.isdigit() for c in finding.advice), finding.advice
        assert finding.evidence
        assert finding.last_good_step is None or finding.last_good_step <= finding.first_step
        assert finding.first_step <= finding.last_step
        assert all(e.step is None or e.step <= finding.last_step for e in finding.evidence)


def test_every_rule_has_a_sick_case_and_every_recipe_a_small_recording() -> None:
    recorded = {a.rule.code for a in ANALYZERS} - {case.rule for case in WIRING.values()}
    assert recorded <= {rule for case in CASES.values() for rule in case.expect}
    assert {path.stem for path in DATA.glob("*.npz")} == set(CASES)
    assert sum(path.stat().st_size for path in DATA.glob("*.npz")) < 12e6


def only(name: str, rule: str) -> Finding:
    (finding,) = [f for f in flat(diagnosis(name)) if f.rule == rule]
    return finding


def test_a_loss_that_leaves_for_good_is_told_inside_what_drove_it_away() -> None:
    (top,) = [f for f in diagnosis("diverging").findings if f.severity >= Severity.WARNING]
    assert top.rule == "SK102"
    assert {f.rule for f in top.consequences} == {"SK201", "SK202", "SK203", "SK206"}
    assert diagnosis("diverging").worst is Severity.ERROR


def test_a_clipped_gradient_spike_is_information_an_unclipped_one_a_warning() -> None:
    assert only("gradient_spike", "SK203").severity is Severity.WARNING
    assert only("gradient_spike_clipped", "SK203").severity is Severity.INFO


def test_a_nan_in_one_gradient_names_its_tensor_while_the_loss_is_finite() -> None:
    finding = only("root_of_zero", "SK301")
    assert finding.message == "first NaN or Inf in the gradient of blocks.1.fc1.weight at step 90"
    assert finding.last_good_step == 89


def test_a_nan_that_clipping_spread_to_every_gradient_names_no_tensor() -> None:
    finding = only("root_of_zero_clipped", "SK301")
    assert finding.message == "first NaN or Inf in the gradient of every tensor at step 90"
    assert finding.tensors == ()
    assert "clipping by a NaN norm hides in which tensor it began" in finding.advice


def test_growth_into_nan_names_what_grew_before_it() -> None:
    finding = only("growing_until_nan", "SK301")
    assert "before it blocks.1.fc2.weight grew" in finding.message
    assert finding.last_good_step == finding.first_step - 1
    (top,) = diagnosis("growing_until_nan").findings
    assert top.rule == "SK302" and "SK301" in {f.rule for f in top.consequences}


def test_false_alarms_on_the_healthy_recordings() -> None:
    """Every recorded healthy step, all rules together, at warning and above: none in 1,895 steps."""
    healthy = [diagnosis(name) for name, case in CASES.items() if case.clean]
    assert sum(d.steps for d in healthy) == 1895
    assert sum(f.severity >= Severity.WARNING for d in healthy for f in flat(d)) == 0
