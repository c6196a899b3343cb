"""The rule on falling loss scales: what a scaler does on any day, and its borders, on scales that real scalers chose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from analyzer_runs import flat, make_run

from stabkit.analyzers import analyze
from stabkit.finding import Finding, Severity, State, Status
from stabkit.runlog import RunLog


def scales(limit: Callable[[int], float], steps: int = 1000, init: float = 2.0**16, interval: int = 100) -> RunLog:
    """What a real GradScaler makes of gradients that overflow from a scale of `limit(step)` on."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=init, growth_interval=interval)
    seen, skipped = np.empty(steps), np.zeros(steps)
    for step in range(1, steps + 1):
        seen[step - 1] = scaler.get_scale()
        scaler.scale(weight.sum()).backward()
        if seen[step - 1] >= limit(step):
            weight.grad.fill_(float("inf"))  # type: ignore[union-attr]
            skipped[step - 1] = 1
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return make_run(steps=np.arange(1, steps + 1), loss_scale=seen, skipped=skipped)


def found(run: RunLog) -> list[Finding]:
    return [f for f in flat(analyze(run)) if f.rule == "SK303"]


def thinned(run: RunLog, every: int) -> RunLog:
    """The same scales as a log of another tool would hold them: rarely, and without a word on skipped steps."""
    keep = run.steps % every == 0
    return RunLog.from_arrays(run.steps[keep], {"loss_scale": run.series("loss_scale").values[keep]})


def test_the_descent_from_the_first_scale_is_how_scalers_begin() -> None:
    for init in (2.0**16, 2.0**24, 2.0**32):
        assert analyze(scales(lambda step: 20.0, init=init)).outcome("SK303").status is Status.CLEAR


@pytest.mark.parametrize("interval", [7, 20, 100, 400])
def test_growth_and_backoff_in_turn_are_its_ordinary_work(interval: int) -> None:
    noise = np.random.default_rng(0)
    assert not found(scales(lambda step: 2.0**12 * np.exp(0.3 * noise.standard_normal()), interval=interval))


def test_a_slow_fall_is_none_until_the_floor() -> None:
    run = scales(lambda step: 2.0 ** (9 - step / 150), 2000, interval=2000)
    (finding,) = found(run)
    assert run.series("loss_scale").values[run.steps == finding.first_step] == 1.0
    assert finding.severity is Severity.ERROR
    assert not found(run.until(finding.first_step - 1))


def test_three_halvings_in_a_row_are_told_at_the_third() -> None:
    run = scales(lambda step: 2.0**14 if step < 500 else 2.0**9)
    (finding,) = found(run)
    assert (finding.first_step, finding.last_good_step, finding.state) == (503, 500, State.RECOVERED)
    assert finding.severity is Severity.WARNING
    assert finding.remedy == {"bfloat16": 1.0} and finding.advice.startswith("Autocast to bfloat16")


def test_a_collapse_to_nothing_is_one_error() -> None:
    run = scales(lambda step: 2.0**14 if step < 500 else 0.0, 540)
    (finding,) = found(run)
    assert (finding.first_step, finding.severity, finding.state) == (503, Severity.ERROR, State.ONGOING)
    assert found(run.until(505))[0].severity is Severity.WARNING


def test_a_scale_that_never_settles_is_told_at_the_floor() -> None:
    (finding,) = found(scales(lambda step: 0.0, 30))
    assert (finding.first_step, finding.severity) == (17, Severity.ERROR)
    assert "fell from 65536 to 1 between step 1 and step 17" in finding.message


def test_a_second_collapse_is_told_when_the_scale_had_settled() -> None:
    run = scales(lambda step: 2.0**14 if step < 300 else 2.0**9 if step < 700 else 2.0**4, interval=2000)
    assert [f.first_step for f in found(run)] == [303, 703]


def test_a_scaler_made_anew_descends_again() -> None:
    run = scales(lambda step: 40.0, 300)
    again = scales(lambda step: 40.0, 300)
    both = np.concatenate([run.series("loss_scale").values, again.series("loss_scale").values])
    assert not found(make_run(steps=np.arange(1, 601), loss_scale=both))


@pytest.mark.parametrize("every", [1, 10, 50, 100, 500])
def test_a_log_of_any_cadence_will_do(every: int) -> None:
    (finding,) = found(thinned(scales(lambda step: 2.0**14 if step < 2010 else 2.0**5, 4000), every))
    assert 2010 < finding.first_step <= 2020 + every
    assert not found(thinned(scales(lambda step: 2.0**14, 4000), every))


def test_a_constant_scale_has_nothing_to_judge() -> None:
    outcome = analyze(make_run(steps=np.arange(1, 300), loss_scale=np.ones(299))).outcome("SK303")
    assert (outcome.status, outcome.occasion) == (Status.NOT_APPLICABLE, False)
    assert outcome.reason == "the loss scale never changes"


def test_the_tensor_whose_gradient_overflowed_first_is_named() -> None:
    run = scales(lambda step: 2.0**14 if step < 500 else 2.0**9)
    bad = np.zeros((len(run.steps), 5))
    bad[501, :3] = 4.0  # backward went from the bias to the embedding: it broke at "b"
    broken = make_run(steps=run.steps, **{k: v for k, v in run.stream.step_values.items() if k in ("loss_scale", "skipped")},
                      grad_nonfinite=bad)  # fmt: skip
    (finding,) = found(broken)
    assert finding.tensors == ("b", "a", "embed")
    assert finding.message.endswith("in the gradient of b")
