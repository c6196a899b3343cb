"""The numbers that people are told to use, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from analyzer_runs import TENSORS, flat, make_run

from stabkit.analyzers import analyze
from stabkit.analyzers.start import warmup_for
from stabkit.finding import REMEDIES, Finding, Severity, State
from tests.cases import load_case
from tests.cases.recipes import CASES

NUMEL = np.array([t.numel for t in TENSORS])


def only(run: Any, rule: str) -> Finding:
    (finding,) = [f for f in flat(analyze(run)) if f.rule == rule]
    return finding


@pytest.mark.parametrize(
    ("beta2", "planned", "full", "steps", "other"),
    [
        (0.999, None, 2000, 2000, None),  # 2 / 0.001
        (0.999, 20_000, 2000, 2000, None),  # exactly a tenth
        (0.999, 19_990, 2000, 1999, 1 - 2 / 1999),
        (0.999, 400, 2000, 40, 0.95),  # 2 / (1 - 0.95) = 40
        (0.999, 80, 2000, 8, None),  # beta2 would be 0.75
        (0.95, 1000, 40, 40, None),
    ],
)
def test_the_warmup(beta2: float, planned: int | None, full: int, steps: int, other: float | None) -> None:
    warmup = warmup_for(beta2, 3e-2, 1.5, planned)
    assert (warmup.full, warmup.steps, warmup.beta2) == (full, steps, other)
    assert warmup.lr == pytest.approx(2e-3)  # 3e-2 * 0.1 / 1.5


def too_fast(total: int | None, loss: Any = None) -> Any:
    updates = np.full((60, 5), (0.01 * 0.05) ** 2) * NUMEL
    updates[0, 1] = (1.5 * 0.05) ** 2 * 16  # of "a", 1.5 times its size
    facts = {} if total is None else {"total_steps": total}
    return make_run(np.full(60, 3.0) if loss is None else loss, lr=3e-2, beta2=0.999, update_sumsq=updates, facts=facts)


def test_missing_warmup() -> None:
    finding = only(too_fast(400), "SK101")
    assert finding.message == "no warmup: step 1 at rate 0.03 changed a by 1.5 times its own size"
    assert (finding.severity, finding.first_step, finding.last_good_step) == (Severity.WARNING, 2, 0)
    assert finding.advice == (
        "Start again with a linear warmup of 40 steps and a peak rate of 0.002. The full warmup for beta2 0.999 would be 2000 "
        "steps, more than a tenth of these 400; to keep the rate 0.03, use it in a longer run, or beta2 0.95, whose full "
        "warmup that is."
    )


def test_missing_warmup_of_a_run_of_unknown_length_does_not_take_the_log_for_the_run() -> None:
    assert only(too_fast(None), "SK101").advice == (
        "Start again with a linear warmup of 2000 steps (2 / (1 - beta2) at beta2 0.999). If that is more than a tenth of the "
        "run, lower the peak rate to 0.002."
    )


@pytest.mark.parametrize("worst", [5.0, np.nan])
def test_missing_warmup_is_an_error_once_it_did_harm(worst: float) -> None:
    loss = np.full(60, 3.0)
    loss[30] = worst
    assert only(too_fast(400, loss), "SK101").severity is Severity.ERROR
    assert only(too_fast(400, loss).until(30), "SK101").severity is Severity.WARNING


def test_oversized_update() -> None:
    finding = only(too_fast(400), "SK102")
    assert finding.advice == "Lower the rate at step 1 from 0.03 to 0.001: there the update would be 5 % of the weights."


def test_first_step_at_peak_rate() -> None:
    rates = np.concatenate([[1e-2], np.linspace(1e-3, 1e-2, 59)])
    assert "construct the optimizer with lr=0.001" in only(make_run(np.full(60, 3.0), lr=rates), "SK103").advice


def test_zero_rate_steps() -> None:
    rates = np.concatenate([np.zeros(3), np.full(55, 1e-3), np.zeros(2)])
    start, end = (f for f in flat(analyze(make_run(np.full(60, 3.0), lr=rates))) if f.rule == "SK104")
    assert start.message == "3 steps from 1 to 3 changed nothing: their rate is 0"
    assert "(step + 1) / warmup" in start.advice and "the first 3 batches are not wasted" in start.advice
    assert (end.first_step, end.state) == (59, State.ONGOING)


def test_gradient_spike_gives_a_limit_from_the_runs_own_norms() -> None:
    norm = np.tile([0.9, 1.1, 1.0], 50)
    norm[120] = 50.0
    finding = only(make_run(np.full(150, 3.0), grad_norm=norm, grad_norm_used=norm), "SK203")
    assert finding.last_good_step == 120
    assert finding.advice.startswith("Clip the gradient norm at 1.4,")  # 1 + 3 * 1.4826 * 0.1 = 1.44


def test_stale_second_moment() -> None:
    ratio = np.ones((200, 5))
    ratio[149:151, 1:4] = [4.0, 5.0, 3.0]
    finding = only(make_run(np.full(200, 3.0), rms_sum=ratio**2 * NUMEL), "SK204")
    assert finding.tensors == ("b", "a", "c")
    assert finding.message == "gradients of b are 5 times what its second moment expects at step 150"
    assert finding.advice == (
        "Lower beta2 from 0.99 to 0.95; or keep it and divide the rate of b by its rms_ratio where that is above 1 "
        "(0.0002 instead of 0.001 here), as StableAdamW does."
    )


def test_growth_counts_the_steps_left() -> None:
    weights = np.full((200, 5), 0.05)
    weights[:, 1] *= np.exp(0.03 * np.arange(200))
    run = make_run(np.full(200, 3.0), weight_sumsq=weights**2 * NUMEL, weight_absmax=weights, tensors=TENSORS)
    finding = only(run, "SK302")
    left = (np.log(3.4e38) - np.log(0.05 * np.exp(0.03 * 99))) / 0.03
    assert finding.first_step == 100 and f"at most {int(left)} steps from overflow" in finding.message
    assert "set its weight decay right: 30 at this rate would hold it, where it is 0. " in finding.advice  # 0.03 / 1e-3
    assert finding.remedy == {"weight_decay": 30.0}
    assert (finding.event_step, finding.last_good_step) == (1, 1)


def test_divergence_goes_back_before_the_departure() -> None:
    loss = np.concatenate([3 * np.exp(-np.arange(100) / 20) + 1, np.full(100, 4.0)])
    loss *= np.exp(0.01 * np.random.default_rng(0).standard_normal(200))
    finding = only(make_run(loss), "SK202")
    assert finding.last_good_step is not None and finding.event_step is not None
    assert 80 <= finding.last_good_step <= 100 < finding.event_step <= 115 < finding.first_step <= 150


@pytest.mark.parametrize("name", CASES)
def test_the_remedy_for_machines_is_the_one_people_read(name: str) -> None:
    for finding in flat(analyze(load_case(name))):
        for knob, value in finding.remedy.items():
            assert knob in REMEDIES
            shown = {f"{value:.2g}", f"{value:.3g}", f"{value:g}"}
            assert value == 1 or any(number in finding.advice for number in shown), (finding.rule, knob, value)


def test_a_gradient_multiplied_by_hand_is_a_spike_all_the_same() -> None:
    before, used = np.tile([0.9, 1.1, 1.0], 50), np.tile([0.9, 1.1, 1.0], 50)
    before[120], used[120] = np.nan, 50.0
    finding = only(make_run(np.full(150, 3.0), grad_norm=before, grad_norm_used=used), "SK203")
    assert (finding.first_step, finding.remedy) == (121, {"clip_norm": pytest.approx(1.0 + 3 * 1.4826 * 0.1)})


def test_a_rate_that_jumps_is_told_with_the_rate_it_had() -> None:
    rates, ratio = np.full(100, 1e-3), np.full((100, 5), 0.01)
    rates[:20], ratio[:20] = 1.5e-3, 0.015  # the highest before is not what it was
    rates[60:], ratio[60:] = 5e-3, 0.05
    finding = only(make_run(np.full(100, 3.0), lr=rates, update_sumsq=(ratio * 0.05) ** 2 * NUMEL), "SK206")
    assert (finding.first_step, finding.remedy) == (61, {"lr_factor": pytest.approx(0.2)})
    assert finding.message.endswith("times as far as is usual for it: the rate jumped from 0.001 to 0.005")


def test_a_warm_restart_is_no_jump() -> None:
    rates = np.tile(np.linspace(1e-3, 1e-5, 100), 2)
    ratio = np.repeat((10 * rates)[:, None], 5, axis=1)
    run = make_run(np.full(200, 3.0), lr=rates, update_sumsq=(ratio * 0.05) ** 2 * NUMEL)
    assert "SK206" not in [f.rule for f in flat(analyze(run))]
