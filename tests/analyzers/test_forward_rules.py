"""The rules on what the forward pass shows, at their limits and beyond."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stabkit.analyzers import judge
from stabkit.analyzers.attention_logit_growth import AttentionLogitGrowth
from stabkit.finding import Finding, Severity, State, Status
from stabkit.runlog import RunLog
from tests.cases import load_case

STEPS = 60


def attending(**layers: Any) -> RunLog:
    steps = np.arange(1, STEPS + 1)
    beside = {f"attention_logit_bound/{name}.weight": (steps, np.asarray(values)) for name, values in layers.items()}
    rates = {"lr": np.full(STEPS, 3e-2)}
    return RunLog.from_arrays(steps, {"loss": np.ones(STEPS)}, group_values=rates, source="stabkit", scalars=beside)


def only(run: RunLog) -> Finding:
    (finding,) = judge(AttentionLogitGrowth(), run).findings
    return finding


RISING = np.geomspace(1, 500, STEPS)


def test_growth_is_told_at_the_third_record_above_the_limit_and_its_layer_named() -> None:
    finding = only(attending(calm=np.full(STEPS, 20.0), query=RISING))
    assert finding.first_step == int(np.argmax(RISING > 100)) + 3
    assert finding.last_good_step == int(np.argmax(RISING > 100))
    assert finding.tensors == ("query.weight",)
    assert (finding.severity, finding.state) == (Severity.WARNING, State.ONGOING)
    assert finding.remedy == {"peak_lr": pytest.approx(1e-2)} and "0.01" in finding.advice


def test_the_largest_of_several_comes_first() -> None:
    assert only(attending(a=RISING, b=1.01 * RISING)).tensors == ("b.weight", "a.weight")


def test_beyond_a_thousand_it_is_an_error_infinite_or_not() -> None:
    assert only(attending(q=4 * RISING)).severity is Severity.ERROR
    beyond = np.where(RISING > 300, np.inf, RISING)
    assert only(attending(q=beyond)).severity is Severity.ERROR


@pytest.mark.parametrize(
    "bounds",
    {
        "large all along, and steady": np.full(STEPS, 150.0),
        "grown, and below the limit": np.geomspace(0.2, 99, STEPS),
        "above it for two steps": np.where(np.arange(STEPS) % 10 < 2, 300.0, 30.0),
        "falling": np.geomspace(900, 120, STEPS),
        "seen nowhere": np.full(STEPS, np.nan),
    }.values(),
)
def test_is_silent_where_logits_are(bounds: Any) -> None:
    assert judge(AttentionLogitGrowth(), attending(q=bounds)).status is Status.CLEAR


def test_what_grew_and_came_down_has_recovered() -> None:
    there_and_back = np.concatenate([np.geomspace(1, 500, STEPS // 2), np.geomspace(500, 10, STEPS // 2)])
    finding = only(attending(q=there_and_back))
    assert finding.state is State.RECOVERED
    assert finding.event_step in (STEPS // 2, STEPS // 2 + 1)


def test_agrees_with_a_plain_loop() -> None:
    for seed in range(40):
        bounds = 60 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0.01, 0.15, STEPS)))
        told = judge(AttentionLogitGrowth(), attending(q=bounds)).findings
        counts, expected = 0, None
        for i, bound in enumerate(bounds):
            counts = counts + 1 if bound > 100 and bound > 1.2 * bounds[max(0, i - 20)] else 0
            if counts >= 3 and i >= 3 and expected is None:
                expected = i + 1
        assert [f.first_step for f in told] == ([expected] if expected else [])


def test_a_run_without_the_forward_pass_could_not_be_looked_at() -> None:
    outcome = judge(AttentionLogitGrowth(), load_case("healthy"))
    assert outcome.status is Status.NOT_APPLICABLE
    assert "attention_logit_bound per layer (recorded by stabkit.watch with forward=True" in outcome.reason


@pytest.mark.parametrize("name", ["growing_attention", "healthy_attention"])
def test_every_prefix_of_a_real_run_gets_the_same_verdict(name: str) -> None:
    run = load_case(name)
    whole = [f.first_step for f in judge(AttentionLogitGrowth(), run).findings]
    for step in range(4, int(run.steps[-1]) + 1, 3):
        known = [f.first_step for f in judge(AttentionLogitGrowth(), run.until(step)).findings]
        assert known == [s for s in whole if s <= step]
