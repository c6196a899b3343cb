"""Rules that tell early what is extreme, at their borders: SK106, SK204, SK302, SK305 and SK504."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analyzer_runs import TENSORS, make_run

from stabkit.analyzers import ANALYZERS, judge
from stabkit.finding import Outcome, Severity, Status
from stabkit.metric import Array
from stabkit.runlog import RunLog, TensorInfo

NUMEL = np.array([t.numel for t in TENSORS])
RULES = {analyzer.rule.code: analyzer for analyzer in ANALYZERS}


def growing(weights: Array, **more: object) -> Outcome:
    """What SK302 says where matrix "a" has weights of these sizes."""
    sizes = np.full((len(weights), 5), 0.05)
    sizes[:, 1] = weights
    run = make_run(np.full(len(weights), 3.0), weight_sumsq=sizes**2 * NUMEL, weight_absmax=sizes, **more)
    return judge(RULES["SK302"], run)


def test_growth_by_a_factor_is_told_while_the_rate_rises() -> None:
    rates = 1e-3 * np.minimum(1, np.arange(1, 101) / 50)
    weights = 0.05 * np.exp(60 * np.cumsum(rates))  # as by a weight decay of -60
    (finding,) = growing(weights, lr=rates).findings
    assert finding.first_step < 50 and finding.tensors[0] == "a"
    assert finding.remedy["weight_decay"] == pytest.approx(60, rel=0.1)


def test_steps_of_full_rate_in_one_direction_are_learning_however_long() -> None:
    rates = 1e-3 * np.minimum(1, np.arange(1, 301) / 50)
    assert growing(1e-3 + np.cumsum(rates), lr=rates).status is Status.CLEAR


def test_a_matrix_that_is_replaced_by_a_large_one_does_not_grow() -> None:
    weights = np.where(np.arange(100) < 60, 0.05, 5.0)
    assert growing(weights).status is Status.CLEAR


def start(gain: float, gradient: float, shape: tuple[int, ...] = (8, 8), role: str = "matrix", loss: float = 2.0) -> RunLog:
    """Three matrices of a gain, whose gradients have a norm, at a loss."""
    tensors = tuple(TensorInfo(name, shape, role=role) for name in "abc")
    numel = int(np.prod(shape))
    ones = np.ones((5, 3))
    columns = {"weight_sumsq": ones * gain**2 / 8 * numel, "grad_used_sumsq": ones * gradient**2, "update_sumsq": ones}
    return RunLog.from_arrays(
        np.arange(1, 6), tensors=tensors, columns=columns, step_values={"loss": np.full(5, loss), "loss_reduction": np.ones(5)},
        group_values={"lr": np.full(5, 1e-3)},
    )  # fmt: skip


def test_weights_of_a_large_gain_that_the_loss_follows() -> None:
    outcome = judge(RULES["SK106"], start(3.0, 1.0))  # norm 3 sqrt(8) of each, over a loss of 2: 7.3 together
    assert outcome.status is Status.FOUND
    (finding,) = outcome.findings
    assert (finding.first_step, finding.remedy) == (1, {"init_factor": 0.19})  # 0.577 / 3


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(start(1.41, 10.0), id="He's"),
        pytest.param(start(3.0, 0.1), id="before a normalisation"),
        pytest.param(start(3.0, 1.0, shape=(2, 32)), id="stored the other way round, or of two inputs"),
    ],
)
def test_a_start_that_does_no_harm(run: RunLog) -> None:
    assert judge(RULES["SK106"], run).status is Status.CLEAR


def test_embeddings_and_losses_below_zero_are_not_judged() -> None:
    assert judge(RULES["SK106"], start(3.0, 1.0, role="embedding")).status is Status.NOT_APPLICABLE
    assert judge(RULES["SK106"], start(3.0, 1.0, loss=-2.0)).status is Status.NOT_APPLICABLE


def test_a_log_that_begins_later_says_nothing_of_the_start() -> None:
    run = start(3.0, 1.0)
    later = replace(run, streams=tuple(replace(s, steps=s.steps + 10, tensor_steps=s.tensor_steps + 10) for s in run.streams))
    assert judge(RULES["SK106"], later).status is Status.NOT_APPLICABLE


@pytest.mark.parametrize(("matrices", "expected"), [(1, []), (2, [150]), (3, [150])])
def test_a_young_second_moment_that_most_matrices_outgrow_at_once(matrices: int, expected: list[int]) -> None:
    ratio = np.ones((200, 5))
    ratio[149, 1 : 1 + matrices] = 6.0  # below the 8 of a single matrix, before step 1,000 at beta2 0.999
    run = make_run(np.full(200, 3.0), beta2=0.999, rms_sum=ratio**2 * NUMEL)
    assert [finding.first_step for finding in judge(RULES["SK204"], run).findings] == expected


def held_back(matrices: int) -> Outcome:
    """What SK504 says where the second moment of some of ten equal matrices is far below eps."""
    tensors = tuple(TensorInfo(f"w{i}", (4, 4)) for i in range(10))
    low = np.arange(10) < matrices
    ones = np.ones((60, 10))
    second = np.where(low, 1e-6, 1.0) ** 2 * 16 * ones
    first = np.where(low, 1e-6, 1.0) ** 2 * 16 * ones
    share = np.where(low, 1e-6 / (1e-6 + 1e-4), 1.0)
    columns = {"exp_avg_sq_sum": second, "exp_avg_sumsq": first, "eps_count": np.where(low, 16.0, 0.0) * ones,
               "update_sumsq": (1e-3 * share) ** 2 * 16 * ones}  # fmt: skip
    groups = {"lr": np.full(60, 1e-3), "eps": np.full(60, 1e-4), "beta1": np.full(60, 0.9), "beta2": np.full(60, 0.999)}
    run = RunLog.from_arrays(np.arange(1, 61), tensors=tensors, columns=columns, group_values=groups)
    return judge(RULES["SK504"], run)


@pytest.mark.parametrize(("matrices", "severity"), [(1, Severity.INFO), (2, Severity.WARNING), (10, Severity.WARNING)])
def test_eps_that_holds_back_a_small_part_is_information(matrices: int, severity: Severity) -> None:
    (finding,) = held_back(matrices).findings
    assert (finding.severity, finding.first_step) == (severity, 10)
