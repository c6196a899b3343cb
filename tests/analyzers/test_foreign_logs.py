"""What the rules on loss and gradient norm make of logs with few quantities, few records, and many steps between two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from analyzer_runs import flat, make_run, told

from stabkit.analyzers import analyze, judge
from stabkit.analyzers.gradient_spike import GradientSpike
from stabkit.analyzers.loss_divergence import LossDivergence
from stabkit.analyzers.loss_scale_collapse import LossScaleCollapse
from stabkit.finding import Finding, Severity, Status
from stabkit.metric import Array
from stabkit.runlog import RunLog, Stream

N = 200
SPACINGS = pytest.mark.parametrize("every", [1, 10, 100, 500])


def foreign(loss: Any = None, n: int = N, first: int = 0, every: int = 1, **values: Any) -> RunLog:
    """A log of another tool: what is given, no tensor, no rate."""
    loss = np.full(n, 3.0) if loss is None else np.asarray(loss, dtype=float)
    held = {"loss": loss, "loss_reduction": np.ones(len(loss))} | {k: np.asarray(v, dtype=float) for k, v in values.items()}
    steps = first + every * np.arange(len(loss), dtype=np.int64)
    return RunLog(source="CSV", streams=(Stream(steps, held),))


def only(run: RunLog, rule: str) -> Finding:
    (finding,) = [f for f in flat(analyze(run)) if f.rule == rule]
    return finding


def noise(n: int = N, sigma: float = 0.02, seed: int = 0) -> Array:
    return np.exp(sigma * np.random.default_rng(seed).standard_normal(n))


def with_at(values: Array, at: int, value: float) -> Array:
    changed = values.copy()
    changed[at] = value
    return changed


@SPACINGS
def test_a_spike_lies_between_two_records(every: int) -> None:
    finding = only(foreign(with_at(3 * noise(), 100, 9.0), every=every), "SK201")
    assert (finding.first_step, finding.last_good_step) == (100 * every, 99 * every)
    where = "the batch of step 100" if every == 1 else f"the batches of steps {99 * every + 1} to {100 * every}: "
    assert finding.advice.startswith(f"Look at {where}")


@SPACINGS
@pytest.mark.parametrize("column", ["grad_norm", "grad_norm_used"])
def test_one_of_the_two_norms_is_enough(every: int, column: str) -> None:
    norm = noise(sigma=0.2)
    finding = only(foreign(every=every, **{column: with_at(norm, 100, 60.0)}), "SK203")
    assert (finding.first_step, finding.last_good_step) == (100 * every, 99 * every)
    assert finding.evidence[0].metric == column
    assert finding.message.startswith("clipped gradient norm" if column == "grad_norm_used" else "gradient norm")
    assert judge(GradientSpike(), foreign(every=every, **{column: norm})).status is Status.CLEAR


def test_without_any_norm_it_says_which_it_could_have_used() -> None:
    outcome = judge(GradientSpike(), foreign())
    assert outcome.status is Status.NOT_APPLICABLE
    assert "no grad_norm (" in outcome.reason and "no grad_norm_used (" in outcome.reason


@SPACINGS
def test_what_follows_within_records_is_inside(every: int) -> None:
    run = foreign(with_at(3 * noise(), 102, 9.0), every=every, grad_norm=with_at(noise(sigma=0.2), 100, 60.0))
    inside = {top.rule: [inner.rule for inner in top.consequences] for top in analyze(run).findings}
    assert inside["SK203"] == ["SK201"]


def test_records_of_other_quantities_in_between_are_no_records_of_the_loss() -> None:
    loss, seen = np.full(2 * N, np.nan), np.zeros(2 * N)
    loss[::2], seen[::2] = with_at(3 * noise(), 100, 9.0), 1
    finding = only(foreign(loss, loss_reduction=seen, grad_norm=np.ones(2 * N)), "SK201")
    assert (finding.first_step, finding.last_good_step) == (200, 198)


CLIMB = [0.21, 0.25, 0.22, 0.24, 0.95, 2.4, 16.0, 145.0, 960.0, 3.0, 0.3]


def test_a_norm_that_climbs_from_record_to_record_is_told_of_a_few_records() -> None:
    finding = only(foreign(n=11, first=31_000, grad_norm=CLIMB), "SK203")
    assert (finding.first_step, finding.event_step, finding.last_good_step) == (31_006, 31_008, 31_005)
    assert finding.message == "gradient norm rose from about 0.24 to 960 at step 31008"
    assert not finding.remedy


@pytest.mark.parametrize(
    "norm",
    [
        [0.2, 0.3, 0.2, 9.0, 0.3, 0.2, 0.25, 0.2, 0.3, 0.2, 0.2],  # one high record: nothing says what is usual
        [0.2, 0.3, 0.45, 0.7, 1.1, 1.6, 1.4, 0.9, 0.5, 0.3, 0.2],  # eightfold in all
        [0.2, 0.9, 0.7, 3.0, 2.0, 9.0, 6.0, 30.0, 20.0, 5.0, 2.0],  # up and down
    ],
)
def test_a_few_records_without_a_climb_are_too_few(norm: list[float]) -> None:
    outcome = judge(GradientSpike(), foreign(n=11, first=31_000, grad_norm=norm))
    assert (outcome.status, "needs 21" in outcome.reason) == (Status.NOT_APPLICABLE, True)


def test_at_the_beginning_of_a_training_norms_find_their_size() -> None:
    assert judge(GradientSpike(), foreign(n=11, first=1, grad_norm=CLIMB)).status is Status.NOT_APPLICABLE


SCALE = [2.0**20] * 3 + [2.0**k for k in (19, 18, 17, 16, 15, 14)]


def test_a_scale_that_let_a_step_through_and_then_falls_is_told_of_nine_records() -> None:
    (finding,) = judge(LossScaleCollapse(), foreign(n=9, first=17_060, loss_scale=SCALE)).findings
    assert (finding.first_step, finding.last_good_step) == (17_065, 17_062)


@pytest.mark.parametrize(("first", "scale"), [(1, SCALE), (17_060, [2.0**k for k in range(20, 11, -1)])])
def test_the_search_for_the_first_scale_is_no_collapse(first: int, scale: list[float]) -> None:
    assert judge(LossScaleCollapse(), foreign(n=9, first=first, loss_scale=scale)).findings == ()


DESCENT = 1 + 9 * (np.arange(1000) + 1.0) ** -0.5


@SPACINGS
def test_a_level_that_shifts_and_stays_is_a_divergence_however_much_was_gained(every: int) -> None:
    loss = DESCENT * noise(1000)
    loss[800:] *= 1.6
    finding = only(foreign(loss, every=every), "SK202")
    assert 795 * every <= (finding.event_step or 0) <= 820 * every
    assert 895 * every <= finding.first_step <= 925 * every
    assert f"stayed away for {finding.first_step - (finding.event_step or 0) + every} steps" in finding.message
    assert judge(LossDivergence(), foreign(DESCENT * noise(1000), every=every)).findings == ()


def test_a_level_that_shifts_and_comes_back_is_none() -> None:
    loss = DESCENT * noise(1000)
    loss[800:860] *= 1.6
    assert judge(LossDivergence(), foreign(loss)).findings == ()


@pytest.mark.parametrize("exponent", [0.2, 0.3, 0.5, 1.0])
def test_weights_made_anew_descend_again_and_are_no_divergence(exponent: float) -> None:
    first = (np.arange(1000) + 1.0) ** -exponent
    loss = (1 + 9 * np.concatenate([first[:500], first[:500]])) * noise(1000)
    assert judge(LossDivergence(), foreign(loss)).findings == ()
    stuck = loss.copy()
    stuck[520:] = stuck[520]
    assert len(judge(LossDivergence(), foreign(stuck)).findings) == 1


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_norm_that_is_not_finite_is_told_though_the_loss_is(value: float) -> None:
    finding = only(foreign(grad_norm=with_at(noise(), 100, value), skipped=np.zeros(N), every=10), "SK301")
    assert (finding.first_step, finding.last_good_step, finding.severity) == (1000, 990, Severity.ERROR)
    assert finding.message == "first NaN or Inf in the gradient norm at step 1000"


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_skipped_step_is_the_scalers_work(value: float) -> None:
    norm, skipped = with_at(noise(), 100, value), with_at(np.zeros(N), 100, 1)
    assert told(analyze(foreign(grad_norm=norm, skipped=skipped))) == []
    for falls in (100, 101):  # scalers write the scale before or after the step
        scale = np.where(np.arange(N) < falls, 65536.0, 32768.0)
        assert told(analyze(foreign(grad_norm=norm, loss_scale=scale))) == []
    assert told(analyze(foreign(grad_norm=norm, loss_scale=np.full(N, 65536.0)))) == [("SK301", 101)]


def test_where_nothing_tells_of_a_scaler_it_is_a_warning_until_a_loss_breaks() -> None:
    norm, loss = with_at(noise(), 100, np.inf), np.full(N, 3.0)
    assert only(foreign(loss, grad_norm=norm), "SK301").severity is Severity.WARNING
    broken = foreign(with_at(loss, 101, np.nan), grad_norm=norm)
    assert only(broken, "SK301").severity is Severity.ERROR
    assert only(broken.until(100), "SK301").severity is Severity.WARNING


def test_a_norm_that_is_logged_now_and_then_is_missing_and_not_broken() -> None:
    assert told(analyze(foreign(grad_norm=np.where(np.arange(N) % 10, np.nan, 1.0)))) == []


@pytest.mark.parametrize(("first", "meant"), [(0, "Count the warmup"), (1, "Count the warmup"), (50, "If the schedule")])
def test_a_rate_of_zero_at_the_first_step_is_a_warmup_counted_from_zero(first: int, meant: str) -> None:
    run = make_run(np.full(50, 3.0), steps=first + np.arange(50), lr=np.minimum(np.arange(50) / 20, 1) * 1e-3, tensors=())
    assert only(replace(run, source="CSV"), "SK104").advice.startswith(meant)
