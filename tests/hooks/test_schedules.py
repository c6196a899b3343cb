"""Schedules, torch's and by hand: the rate recorded is the one the step used, and none is blamed when it is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from truth import assert_blameless, assert_true

import stabkit
from tests.idioms.schedules import SCHEDULES, run_schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_recorded_as_used_and_blamed_for_nothing(tmp_path: Path, name: str) -> None:
    loop = run_schedule(name, tmp_path / "run", foreach=True)
    assert loop.result == run_schedule(name, None, foreach=True).result
    run = stabkit.load(tmp_path / "run")
    assert run.table("lr").values.tolist() == [step.lr for step in loop.truth[0]], "to the last bit"
    assert_true(run, loop)
    assert_blameless(run)


@pytest.mark.parametrize("name", ["LambdaLR", "OneCycleLR", "SequentialLR", "warmup_cosine by hand, after the step"])
def test_a_schedule_made_inside_for_an_adopted_optimizer(tmp_path: Path, name: str) -> None:
    loop = run_schedule(name, tmp_path / "run", adopt=True, scheduled_inside=True, fused=True)
    run = stabkit.load(tmp_path / "run")
    assert run.table("lr").values.tolist() == [step.lr for step in loop.truth[0]]
    assert_true(run, loop)
    assert_blameless(run)


def test_onecycle_turns_the_betas_too(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 10)
    used = []
    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False):
        for _ in range(10):
            model(torch.ones(1, 4)).sum().backward()
            used.append(optimizer.param_groups[0]["betas"][0])
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    assert stabkit.load(tmp_path / "run").table("beta1").values[:, 0].tolist() == used
    assert len(set(used)) > 5


@pytest.mark.parametrize("fused", [False, True])
def test_a_rate_that_is_a_tensor_and_written_in_place(tmp_path: Path, fused: bool) -> None:
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-2), fused=fused)
    used = []
    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False):
        for _ in range(5):
            model(torch.ones(1, 4)).sum().backward()
            used.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"].mul_(0.9)
    assert stabkit.load(tmp_path / "run").series("lr").values.tolist() == used


def test_a_rate_per_micro_batch_is_that_of_the_step(tmp_path: Path) -> None:
    """Set by hand before each micro-batch, as many fine-tuning scripts do: the last one counts."""
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    used = []
    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False):
        for i in range(12):
            optimizer.param_groups[0]["lr"] = 1e-3 / (1 + i)
            (model(torch.ones(1, 4)).sum() / 3).backward()
            if i % 3 == 2:
                used.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                optimizer.zero_grad()
    assert stabkit.load(tmp_path / "run").series("lr").values.tolist() == used
