"""What one number alone does not prove: SK201, SK202 and SK204 ask a second witness."""

from __future__ import annotations

import numpy as np
import pytest
from analyzer_runs import TENSORS, flat, make_run

from stabkit.analyzers import analyze, judge
from stabkit.analyzers.loss_divergence import LossDivergence
from stabkit.analyzers.loss_spike import LossSpike
from stabkit.analyzers.stale_second_moment import StaleSecondMoment
from stabkit.finding import Finding, Severity
from stabkit.metric import Array

N = 400
NUMEL = np.array([t.numel for t in TENSORS])
NOISE = np.where(np.arange(N) % 2, 1.0, -1.0) * (1 + np.arange(N) % 7) / 4  # a median absolute deviation of 1
SPREAD = 0.02 * 1.4826 + 0.01  # of 0.02 times that noise, and the floor


def spikes(at: dict[int, float], norms: dict[int, float] | None = None, **more: object) -> list[Finding]:
    """What SK201 says where log(loss) stands so many deviations above its level, and the gradient norm so many times."""
    log, norm = 0.02 * NOISE, np.exp(0.1 * NOISE)
    for row, score in at.items():
        log[row] = score * SPREAD
    for row, times in (norms or {}).items():
        norm[row] = times
    return list(judge(LossSpike(), make_run(3 * np.exp(log), grad_norm=norm, grad_norm_used=norm, **more)).findings)


def test_seven_deviations_of_the_loss_alone_are_chance_and_nine_are_not() -> None:
    assert spikes({200: 7.0}) == []
    (finding,) = spikes({200: 9.0})
    assert (finding.first_step, finding.evidence[1].expected) == (201, 8.0)


def test_seven_deviations_are_told_where_the_gradient_norm_is_up_too() -> None:
    (finding,) = spikes({200: 7.0}, {200: 4.0})
    assert (finding.first_step, finding.evidence[1].expected) == (201, 6.0)
    assert spikes({200: 7.0}, {200: 1.3}) == []


def test_a_gradient_norm_that_is_not_finite_is_a_witness() -> None:
    assert [f.first_step for f in spikes({200: 7.0}, {200: np.inf})] == [201]


def test_the_fifth_in_a_row_bears_out_the_four_before_it() -> None:
    assert spikes(dict.fromkeys(range(200, 204), 7.0)) == []
    (finding,) = spikes(dict.fromkeys(range(200, 207), 7.0))
    assert (finding.first_step, finding.last_step) == (205, 207)


def test_what_follows_a_spike_at_seven_deviations_belongs_to_it() -> None:
    (finding,) = spikes({200: 9.0} | dict.fromkeys(range(201, 210), 7.0))
    assert (finding.first_step, finding.last_step) == (201, 210)


def stale(norm: float, used: float) -> Finding:
    """What SK204 says of a step whose gradients have outgrown their second moments, and whose norm is this."""
    ratio, norms = np.ones((N, 5)), np.exp(0.1 * NOISE)
    ratio[200, 1:3] = 4.0
    before, after = norms.copy(), norms.copy()
    before[200], after[200] = norm, used
    run = make_run(np.full(N, 3.0), rms_sum=ratio**2 * NUMEL, grad_norm=before, grad_norm_used=after,
                   clip_coefficient=after / before)  # fmt: skip
    (finding,) = judge(StaleSecondMoment(), run).findings
    assert finding.first_step == 201
    return finding


def test_a_gradient_spike_is_told_once_and_what_it_meets_is_information() -> None:
    assert stale(norm=50.0, used=50.0).severity is Severity.INFO


@pytest.mark.parametrize(("norm", "used"), [(1.5, 1.5), (50.0, 1.2)])
def test_gradients_that_outgrow_their_second_moment_without_a_spike_are_a_warning(norm: float, used: float) -> None:
    assert stale(norm, used).severity is Severity.WARNING


def left(jump: Array, update: float = 1.0, **more: object) -> Finding:
    """What SK202 says of a loss that leaves at step 201 along a curve, after a step of so many times the usual update."""
    loss = 1 + 0.02 * NOISE
    loss[200:] += jump
    updates = np.ones(N)
    updates[199] = update
    run = make_run(loss, update_sumsq=(updates[:, None] * 5e-4) ** 2 * NUMEL, **more)
    (finding,) = judge(LossDivergence(), run).findings
    return finding


AWAY = np.arange(N - 200)
FALLING = 3 + 4 * np.exp(-AWAY / 20)


def test_a_loss_that_jumps_though_no_weight_moved_further_than_usual_met_other_data() -> None:
    finding = left(FALLING)
    assert (finding.severity, finding.event_step, finding.last_good_step) == (Severity.INFO, 201, 200)
    assert not finding.remedy and "step 200 moved the weights no further than usual" in finding.message


def test_a_loss_that_jumps_after_a_long_step_diverged() -> None:
    assert left(FALLING, update=4.0).severity is Severity.ERROR


def test_a_loss_that_climbs_or_goes_on_rising_after_its_jump_diverged() -> None:
    assert left(6 * (1 - np.exp(-AWAY / 15))).severity is Severity.ERROR
    assert left(3 + AWAY / 20).severity is Severity.ERROR


def test_without_the_updates_of_that_step_nobody_knows() -> None:
    assert left(FALLING, every=3).severity is Severity.ERROR


def test_other_data_explain_no_error() -> None:
    run = make_run(np.append(1 + 0.02 * NOISE[:200], 1 + FALLING))
    assert max(f.severity for f in flat(analyze(run)) if f.rule == "SK202") is Severity.INFO
