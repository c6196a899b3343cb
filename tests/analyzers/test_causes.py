"""One cause is one finding, the first mover first, and nothing is lost or hidden."""

from __future__ import annotations

from collections import Counter

import pytest
from analyzer_runs import flat
from hypothesis import given
from hypothesis import strategies as st

from stabkit.analyzers import ANALYZERS, analyze
from stabkit.analyzers.causes import EXPLAINS, ROOTS, began, gather
from stabkit.finding import Diagnosis, Finding, Outcome, Severity, Status
from tests.cases import load_case

SPIKES = ("SK201", "SK203", "SK204")
CODES = [a.rule.code for a in ANALYZERS]


def finding(rule: str, first: int, last: int = 0, severity: Severity = Severity.WARNING, **more: int) -> Finding:
    return Finding(
        rule=rule, name=rule, severity=severity, message="", first_step=first, last_step=last or first,
        last_good_step=more.pop("last_good_step", first - 1), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def gathered(*findings: Finding) -> Diagnosis:
    by_rule = {code: tuple(f for f in findings if f.rule == code) for code in CODES}
    outcomes = [Outcome(rule=c, name=c, status=Status.FOUND if fs else Status.CLEAR, findings=fs) for c, fs in by_rule.items()]
    return Diagnosis(path="", source="", steps=1, outcomes=gather(outcomes))


def tree(diagnosis: Diagnosis) -> dict[str, list[str]]:
    return {f"{f.rule}@{f.first_step}": [f"{c.rule}@{c.first_step}" for c in f.consequences] for f in diagnosis.findings}


def test_what_a_missing_warmup_brings_is_inside_it_by_step() -> None:
    start = finding("SK101", 2, 10, last_good_step=0)
    diagnosis = gathered(finding("SK301", 40), finding("SK201", 22), start, finding("SK102", 1))
    assert tree(diagnosis) == {"SK101@2": ["SK102@1", "SK201@22", "SK301@40"]}
    assert diagnosis.outcome("SK301").status is Status.FOUND
    assert diagnosis.outcome("SK301").reason == "explained by SK101 SK101 at step 2"


def test_the_spike_that_came_first_explains_the_others() -> None:
    three = finding("SK203", 100), finding("SK201", 101), finding("SK204", 103)
    assert tree(gathered(*three)) == {"SK203@100": ["SK201@101", "SK204@103"]}
    assert tree(gathered(finding("SK201", 100), finding("SK203", 101))) == {"SK201@100": ["SK203@101"]}


def test_what_came_before_is_no_consequence_nor_what_came_long_after() -> None:
    assert tree(gathered(finding("SK102", 100), finding("SK201", 99), finding("SK203", 151))) == {
        "SK201@99": [], "SK102@100": [], "SK203@151": [],
    }  # fmt: skip


@pytest.mark.parametrize("worse", ["SK202", "SK301"])
def test_a_divergence_or_nan_is_never_hidden_behind_a_spike(worse: str) -> None:
    for spike in SPIKES:
        diagnosis = gathered(finding(spike, 100, 110), finding(worse, 105, severity=Severity.ERROR))
        assert worse in [f.rule for f in diagnosis.findings]
        assert diagnosis.findings[0].rule == worse


def test_a_spike_that_never_came_back_is_part_of_the_divergence() -> None:
    left = finding("SK202", 140, 200, Severity.ERROR, event_step=110, last_good_step=90)
    assert tree(gathered(left, finding("SK201", 100, 200))) == {"SK202@140": ["SK201@100"]}


def test_the_worst_counts_what_is_inside() -> None:
    inside = gathered(finding("SK102", 100), finding("SK301", 101, severity=Severity.ERROR))
    assert [f.severity for f in inside.findings] == [Severity.WARNING]
    assert inside.worst is Severity.ERROR and inside.exit_code == 1


ANY = st.builds(
    lambda rule, first, length, back: finding(rule, first, first + length, last_good_step=max(0, first - back)),
    st.sampled_from(CODES), st.integers(1, 300), st.integers(0, 80), st.integers(1, 60),
)  # fmt: skip


@given(st.lists(ANY, max_size=12))
def test_nothing_is_lost_or_doubled_and_arrows_point_forward(findings: list[Finding]) -> None:
    diagnosis = gathered(*findings)
    assert Counter(flat(diagnosis)) == Counter(findings)
    assert diagnosis.worst == max((f.severity for f in findings), default=None)
    for top in diagnosis.findings:
        for inner in top.consequences:
            assert inner.rule in EXPLAINS[top.rule] and not inner.consequences
            assert began(inner) > (top.last_good_step or 0)


def test_roots_come_before_what_they_explain_and_errors_explain_no_root() -> None:
    assert set(ROOTS) < set(EXPLAINS)
    assert not set(ROOTS) & set().union(*(EXPLAINS[code] for code in (*SPIKES, "SK202")))


def test_information_never_hides_a_warning() -> None:
    """A gradient spike that clipping absorbed is information; the loss spike beside it is not."""
    spike = analyze(load_case("gradient_spike_clipped")).findings[0]
    assert (spike.rule, spike.severity) == ("SK201", Severity.WARNING)
    assert [(c.rule, c.severity) for c in spike.consequences] == [("SK203", Severity.INFO)]
