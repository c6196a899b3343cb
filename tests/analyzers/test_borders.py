"""Where rules end: what they are known to get wrong, and how often they cry on healthy noise."""

from __future__ import annotations

import numpy as np
import pytest
from analyzer_runs import TENSORS, make_run, told

from stabkit.analyzers import analyze, judge
from stabkit.analyzers.gradient_spike import GradientSpike
from stabkit.analyzers.loss_spike import LossSpike
from stabkit.metric import Array

N = 1000
T = np.arange(N)
DESCENTS = {
    "flat": np.full(N, 3.0),
    "power 0.5": 2 + 8 * (T + 1.0) ** -0.5,
    "power 0.3": 10 * (T + 1.0) ** -0.3,
    "fast": 2.5 + 3 * np.exp(-T / 30),
    "slow": 2.5 + 3 * np.exp(-T / 100),
    "steep": 0.1 + 5 * np.exp(-T / 15),
}
ASCENTS = {"warming up": 1 + 2 * np.minimum(T / 100, 1), "growing": 0.5 * (T + 1.0) ** 0.3}
NUMEL = np.array([t.numel for t in TENSORS])


def alarms(rule: LossSpike | GradientSpike, shape: Array, sigma: float, seeds: int) -> float:
    """Findings of a rule per 1,000 steps of a shape with log-normal noise."""
    count = 0
    for seed in range(seeds):
        values = shape * np.exp(sigma * np.random.default_rng(seed).standard_normal(N))
        count += len(judge(rule, make_run(values, grad_norm=values, grad_norm_used=values, tensors=())).findings)
    return count / seeds


def test_healthy_noise_raises_less_than_one_loss_alarm_in_1000_steps() -> None:
    rates = [alarms(LossSpike(), shape, sigma, 5) for shape in DESCENTS.values() for sigma in (0.01, 0.03, 0.1)]
    assert np.mean(rates) < 1
    assert max(rates) < 1


def test_healthy_noise_raises_less_than_one_gradient_alarm_in_1000_steps() -> None:
    rates = [alarms(GradientSpike(), shape, 0.2, 5) for shape in (*DESCENTS.values(), *ASCENTS.values())]
    assert np.mean(rates) < 1
    assert max(rates) < 1


def test_a_lasting_shift_of_level_is_told_once() -> None:
    loss = np.where(T < 300, 3.0, 4.0) * np.exp(0.01 * np.random.default_rng(0).standard_normal(N))
    assert [step for rule, step in told(analyze(make_run(loss, tensors=()))) if rule == "SK201"] == [301]


def test_a_switch_to_harder_data_is_taken_for_divergence() -> None:
    loss = np.where(T < 300, 3.0, 6.0) * np.exp(0.01 * np.random.default_rng(0).standard_normal(N))
    found = [rule for rule, _ in told(analyze(make_run(loss, tensors=())))]
    assert found == ["SK507", "SK201", "SK202"]  # and nothing was learnt before


def test_a_divergence_around_its_border_is_told_once() -> None:
    loss = np.where(T < 300, 3.0, np.where(T % 150 < 10, 3.0, 6.0)) * np.exp(0.01 * np.random.default_rng(0).standard_normal(N))
    assert [rule for rule, _ in told(analyze(make_run(loss, tensors=())))].count("SK202") == 1


def test_a_spike_in_the_first_twenty_steps_is_not_judged() -> None:
    loss = np.full(100, 3.0)
    loss[15] = 30
    assert told(analyze(make_run(loss))) == []


def test_spikes_up_to_thirty_steps_apart_are_one() -> None:
    loss = np.full(200, 3.0)
    loss[[100, 131, 163]] = 9
    assert told(analyze(make_run(loss))) == [("SK201", 101), ("SK201", 164)]


def test_a_zero_loss_has_no_noise_to_stand_out_of() -> None:
    loss = np.zeros(100)
    loss[50] = 1.0
    assert told(analyze(make_run(loss))) == []


def test_one_large_first_step_on_purpose_is_taken_for_a_late_scheduler() -> None:
    rates = np.concatenate([[1e-2], np.linspace(1e-3, 5e-3, 49)])
    assert told(analyze(make_run(np.full(50, 3.0), lr=rates))) == [("SK103", 3)]


def test_a_schedule_that_ends_at_zero_is_information() -> None:
    diagnosis = analyze(make_run(np.full(100, 3.0), lr=1e-3 * (1 - np.arange(1, 101) / 100)))
    assert told(diagnosis) == [("SK104", 100)] and diagnosis.exit_code == 0


def test_an_overwritten_matrix_is_taken_for_an_oversized_update() -> None:
    updates = np.full((100, 5), (0.01 * 0.05) ** 2) * NUMEL
    updates[59, 2] = (1.4 * 0.05) ** 2 * 16
    (finding,) = analyze(make_run(np.full(100, 3.0), update_sumsq=updates)).findings
    assert (finding.rule, finding.first_step, finding.tensors) == ("SK102", 60, ("b",))
    assert [f.rule for f in finding.consequences] == ["SK206"]


def test_a_matrix_that_starts_at_zero_has_no_size_to_be_changed_by() -> None:
    weights, updates = np.full((100, 5), 0.05**2) * NUMEL, np.full((100, 5), (0.01 * 0.05) ** 2) * NUMEL
    weights[0, 1], weights[1:, 1], updates[:, 1] = 1e-12, 1e-6, 1e-4
    assert told(analyze(make_run(np.full(100, 3.0), weight_sumsq=weights, update_sumsq=updates))) == []


@pytest.mark.parametrize(("beta2", "status"), [(0.8, "not-applicable"), (0.9, "found"), (0.99, "found")])
def test_the_ratio_cannot_pass_its_ceiling(beta2: float, status: str) -> None:
    ratio = np.ones((200, 5))
    ratio[150:152, 1:4] = 0.9 / np.sqrt(1 - beta2)
    diagnosis = analyze(make_run(np.full(200, 3.0), beta2=beta2, rms_sum=ratio**2 * NUMEL))
    assert str(diagnosis.outcome("SK204").status) == status


def test_a_second_moment_that_decayed_too_far_is_not_seen() -> None:
    ratio = np.ones((200, 5))
    ratio[150:] = 0.005
    assert told(analyze(make_run(np.full(200, 3.0), rms_sum=ratio**2 * NUMEL))) == []


def test_a_scale_free_matrix_that_grows_by_a_factor_is_taken_for_harm_but_one_over_t_is_not() -> None:
    for growth, expected in ((np.exp(0.02 * np.arange(200)), [("SK302", 109)]), (1 + 0.2 * np.arange(200), [])):
        weights = np.full((200, 5), 0.05)
        weights[:, 1] *= growth
        assert told(analyze(make_run(np.full(200, 3.0), weight_sumsq=weights**2 * NUMEL, weight_absmax=weights))) == expected
