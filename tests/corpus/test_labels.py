"""The labeller on curves whose labels are known, and its sums against a slow check written from the definition."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from benchmarks.corpus.curves import Array, excess
from benchmarks.corpus.labels import Curves, events, excused, failed


def noisy(n: int = 300, level: float = 2.0, seed: int = 0) -> Array:
    return level * np.exp(0.02 * np.random.default_rng(seed).standard_normal(n))


def kinds(curves: Curves) -> list[tuple[int, str]]:
    return [(event.onset, event.kind) for event in events(curves)]


def against(loss: Array, **facts: object) -> Curves:
    values: dict[str, object] = {"twin": noisy(len(loss), seed=1), "final": 2.0, "twin_final": 2.0, "deviation": 0.02, **facts}
    return Curves(loss=loss, **values)  # type: ignore[arg-type]


def test_noise_alone_is_healthy() -> None:
    assert kinds(against(noisy())) == []


def test_one_high_loss_is_a_spike_where_it_stands() -> None:
    loss = noisy()
    loss[149] *= 2
    assert kinds(against(loss)) == [(150, "spike")]


def test_two_spikes_close_together_are_one() -> None:
    loss = noisy()
    loss[[149, 170]] *= 2
    found = events(against(loss))
    assert [(e.onset, e.end) for e in found] == [(150, 171)]


def test_a_rise_that_the_twin_shares_is_the_datas() -> None:
    loss, twin = noisy(), noisy(seed=1)
    loss[149] *= 2
    twin[149] *= 1.9
    assert kinds(against(loss, twin=twin)) == []


def test_of_a_run_without_twin_only_the_rise_at_its_change_of_data_is_left_out() -> None:
    loss = noisy()
    loss[[99, 199]] *= 2
    assert kinds(Curves(loss=loss, final=2.0, data_changes=(100,))) == [(200, "spike")]


def test_a_loss_that_leaves_and_stays_away_is_a_failure_from_where_it_left() -> None:
    loss = noisy()
    loss[199:] *= 1.5
    ((onset, kind),) = kinds(against(loss, final=3.0))
    assert kind == "failure"
    assert abs(onset - 200) <= 5


def test_a_departure_that_returns_is_a_spike_and_one_that_lasts_to_the_end_a_divergence() -> None:
    loss = noisy()
    loss[99:180] *= 1.5
    (event,) = events(against(loss))
    assert event.kind == "spike"
    assert abs(event.onset - 100) <= 5 and abs(event.end - 180) <= 5
    loss[180:] *= 1.5
    ((onset, kind),) = kinds(against(loss))
    assert kind == "divergence"
    assert abs(onset - 100) <= 5


def test_a_run_that_fails_by_a_little_after_its_rise_was_made_good_has_had_a_spike() -> None:
    loss = noisy()
    loss[99:] *= 1 + 3 * np.exp(-np.arange(201) / 20)
    loss[99:] *= 1.08
    (event,) = events(against(loss, final=2.2))
    assert event.kind == "spike"
    assert abs(event.onset - 100) <= 5 and 130 <= event.end <= 180


def test_a_rise_in_the_first_steps_is_held_against_the_twin_and_the_first_loss() -> None:
    loss = noisy()
    loss[2:5] *= 2
    assert kinds(against(loss)) == [(3, "spike")]
    assert kinds(Curves(loss=loss, final=2.0)) == []


def test_a_rise_that_the_data_made_is_excused_and_no_event() -> None:
    loss, twin = noisy(), noisy(seed=1)
    loss[149] *= 2
    twin[149] *= 1.9
    assert excused(against(loss, twin=twin)) == [(150, 150)]
    assert excused(against(loss)) == []


def test_an_event_tells_what_it_was_merged_from() -> None:
    loss = noisy()
    loss[149] *= 2
    loss[160:] = np.nan
    (event,) = events(against(loss))
    assert (event.onset, event.end, event.kind) == (150, 300, "nonfinite")
    assert {(stage.onset, stage.kind) for stage in event.stages} == {(150, "spike"), (161, "nonfinite")}


def test_a_spike_that_rings_is_found_against_what_was_before() -> None:
    loss = noisy()
    ringing = np.exp(-np.arange(60) / 30) * np.abs(np.sin(np.arange(60) * 0.7 + 0.5))
    loss[120:180] *= np.exp(4 * ringing)
    found = events(against(loss))
    assert [event.kind for event in found] == ["spike"]
    assert abs(found[0].onset - 121) <= 2 and found[0].end > 140


def test_weights_that_stand_still_and_a_worse_loss_are_stagnation() -> None:
    loss = noisy()
    loss[199:] *= 1.5
    stuck = np.full(300, 0.9)
    assert [kind for _, kind in kinds(against(loss, final=3.0, unchanged=stuck))] == ["stagnation"]
    assert kinds(against(noisy(), unchanged=stuck)) == []


def test_the_first_loss_or_weight_that_is_not_finite_is_named() -> None:
    loss, broken = noisy(), np.zeros(300)
    loss[120] = np.nan
    assert kinds(against(loss)) == [(121, "nonfinite")]
    broken[50:] = 3
    assert kinds(against(noisy(), broken=broken)) == [(51, "nonfinite")]


def test_a_scaler_that_finds_its_scale_is_healthy_and_one_that_skips_later_is_not() -> None:
    start, late = np.zeros(300), np.zeros(300)
    start[:15] = 1
    late[200:230:2] = 1
    assert kinds(against(noisy(), skipped=start)) == []
    assert kinds(against(noisy(), skipped=late)) == [(201, "collapse")]


def test_a_scale_that_falls_and_stays_low_has_collapsed() -> None:
    scale = np.full(300, 65536.0)
    scale[150:] = 1.0
    assert kinds(against(noisy(), scale=scale)) == [(151, "collapse")]
    scale[250:] = 65536.0
    assert kinds(against(noisy(), scale=scale)) == []


def test_a_final_loss_within_three_deviations_is_no_failure() -> None:
    assert not failed(2.0 * math.exp(0.059), 2.0, 0.02)
    assert failed(2.0 * math.exp(0.061), 2.0, 0.02)
    assert failed(math.nan, 2.0, 0.02)
    assert not failed(5.0, None, 0.02)


@pytest.mark.parametrize("seed", range(5))
def test_heights_agree_with_a_slow_check(seed: int) -> None:
    logs = np.log(noisy(180, seed=seed))
    logs[seed * 20] = np.nan
    height, deviation = excess(logs)
    for i in range(180):
        near = [x for x in logs[max(i - 50, 0) : i + 51].tolist() if not math.isnan(x)]
        median = statistics.median(near)
        spread = 1.4826 * statistics.median(abs(x - median) for x in near) + 0.01
        assert deviation[i] == pytest.approx(spread)
        if not math.isnan(logs[i]):
            assert height[i] == pytest.approx(logs[i] - median)
