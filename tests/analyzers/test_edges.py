"""Logs that nobody meant to make: no rule breaks on them, and none says "clear" of what it could not look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from analyzer_runs import TENSORS, make_run, told

from stabkit.analyzers import ANALYZERS, analyze, judge
from stabkit.finding import Finding, Severity, Status
from stabkit.runlog import RunLog, TensorInfo

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

N = 150
EVERYTHING = ("weight_sumsq", "update_sumsq", "weight_absmax", "weight_nonfinite", "grad_used_sumsq", "grad_sumsq", "rms_sum")


def odd(value: float) -> RunLog:
    columns = dict.fromkeys(EVERYTHING, value)
    return make_run(np.full(N, value), lr=value, grad_norm=np.full(N, value), grad_norm_used=np.full(N, value), **columns)


ODD: dict[str, RunLog] = {
    "no stream": RunLog(),
    "no step": make_run(np.empty(0)),
    "one step": make_run([3.0]),
    "two steps": make_run([3.0, 3.0]),
    "constant": make_run(np.full(N, 3.0)),
    "one tensor": make_run(np.full(N, 3.0), tensors=TENSORS[1:2]),
    "one bias": make_run(np.full(N, 3.0), tensors=TENSORS[4:]),
    "no tensor": make_run(np.full(N, 3.0), tensors=()),
    "an empty tensor": make_run(np.full(N, 3.0), tensors=(TensorInfo("w", (0, 4)),)),
    "no rate": make_run(np.full(N, 3.0), lr=np.nan),
    "some rates": make_run(np.full(N, 3.0), lr=np.where(np.arange(N) % 3, np.nan, 1e-3)),
    "beta2 of 1": make_run(np.full(N, 3.0), beta2=1.0),
    "resumed": make_run(np.full(N, 3.0), steps=np.arange(500, 500 + N)),
    "thinned": make_run(np.full(N, 3.0), every=5),
    "thinned to nothing": make_run(np.full(N, 3.0), every=1000),
    "with gaps": make_run(np.full(N, 3.0), steps=np.arange(1, N + 1) ** 2),
    "negative": make_run(-np.linspace(1, 9, N)),
    "sinking below zero": make_run(np.linspace(5, -5, N)),
    "zero loss": make_run(np.zeros(N)),
    "alternating": make_run(np.tile([1e300, -1e300], N // 2)),
    "all zero": odd(0.0),
    "all nan": odd(np.nan),
    "all inf": odd(np.inf),
    "huge": odd(1e300),
    "tiny": odd(1e-300),
}


@pytest.mark.parametrize("name", ODD)
def test_no_rule_breaks(name: str) -> None:
    outcomes = analyze(ODD[name]).outcomes
    assert [outcome.rule for outcome in outcomes] == [a.rule.code for a in ANALYZERS]
    assert [outcome.reason for outcome in outcomes if outcome.status is Status.FAILED] == []
    assert all(outcome.reason for outcome in outcomes if outcome.status is Status.NOT_APPLICABLE)


@pytest.mark.parametrize("name", ["constant", "one tensor", "resumed", "thinned", "negative", "sinking below zero"])
def test_nothing_is_found_where_nothing_happens(name: str) -> None:
    assert told(analyze(ODD[name])) == []


@pytest.mark.parametrize("name", ["no stream", "no step"])
def test_of_an_empty_log_no_rule_says_clear(name: str) -> None:
    assert {outcome.status for outcome in analyze(ODD[name]).outcomes} == {Status.NOT_APPLICABLE}
    assert analyze(ODD[name]).exit_code_for(Severity.WARNING, required=["SK201"]) == 3


@pytest.mark.parametrize(("name", "rule"), [("one bias", "SK204"), ("thinned to nothing", "SK302"), ("one bias", "SK302"),
                                            ("resumed", "SK101"), ("resumed", "SK103"), ("beta2 of 1", "SK204")])  # fmt: skip
def test_a_rule_that_could_not_look_says_so(name: str, rule: str) -> None:
    assert analyze(ODD[name]).outcome(rule).status is Status.NOT_APPLICABLE


def test_a_rate_that_rises_all_along_is_no_ground_for_a_clear() -> None:
    outcome = judge(by_code("SK204"), make_run(np.full(N, 3.0), lr=np.linspace(1e-4, 1e-3, N)))
    assert outcome.status is Status.NOT_APPLICABLE
    assert "the rate has risen all along" in outcome.reason


@pytest.mark.parametrize(("every", "first"), [(1, 100), (5, 100)])
def test_thinned_records_still_tell_growth(every: int, first: int) -> None:
    weights = np.full((200, 5), 0.05)
    weights[:, 1] *= np.exp(0.03 * np.arange(200))
    numel = np.array([t.numel for t in TENSORS])
    run = make_run(np.full(200, 3.0), every=every, weight_sumsq=weights**2 * numel, weight_absmax=weights)
    (finding,) = judge(by_code("SK302"), run).findings
    assert (finding.tensors[0], finding.first_step) == ("a", first)


def test_a_rule_that_breaks_does_not_silence_the_others() -> None:
    class Broken:
        rule = replace(ANALYZERS[0].rule, code="SK999", requires=())

        def analyze(self, run: RunLog) -> Iterator[Finding]:
            raise ZeroDivisionError("oh")
            yield

    run = make_run(np.where(np.arange(N) == 99, 50.0, 3.0))
    diagnosis = analyze(run, (Broken(), *ANALYZERS))
    assert diagnosis.outcome("SK999").status is Status.FAILED
    assert diagnosis.outcome("SK999").reason == "ZeroDivisionError: oh"
    assert ("SK201", 100) in told(diagnosis)


def test_each_optimizer_is_judged_by_itself() -> None:
    sick, well = make_run(np.where(np.arange(N) == 99, 50.0, 3.0)), make_run(np.full(N, 3.0))
    both = replace(well, streams=(well.stream, sick.stream))
    diagnosis = analyze(both)
    assert [o.status for o in diagnosis.outcomes if o.rule == "SK201"] == [Status.CLEAR, Status.FOUND]
    assert len(diagnosis.outcomes) == 2 * len(ANALYZERS)


def test_a_missing_loss_is_not_a_nan_loss() -> None:
    loss = np.full(N, 3.0)
    loss[40:60] = np.nan
    assert told(analyze(make_run(loss, loss_reduction=np.where(np.isnan(loss), 0, 1)))) == []
    assert told(analyze(make_run(loss))) == [("SK301", 41)]


def test_a_step_that_the_scaler_skipped_is_its_ordinary_work() -> None:
    bad = np.zeros((N, 5))
    bad[29] = 1
    assert told(analyze(make_run(np.full(N, 3.0), grad_nonfinite=bad, skipped=bad[:, 0]))) == []
    assert told(analyze(make_run(np.full(N, 3.0), grad_nonfinite=bad, skipped=np.zeros(N)))) == [("SK301", 30)]


def test_a_loss_that_falls_below_zero_is_still_judged() -> None:
    loss = 5 - 0.1 * np.arange(N) + 0.05 * np.random.default_rng(0).standard_normal(N)
    loss[120] += 8
    assert told(analyze(make_run(loss))) == [("SK201", 121)]


def by_code(code: str) -> Any:
    return next(a for a in ANALYZERS if a.rule.code == code)
