"""With a budget as many steps are measured as it pays for, and no spike is lost for it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stabkit
from stabkit.errors import UsageError
from stabkit.hooks import ways
from stabkit.hooks.cadence import Cadence
from stabkit.runlog import StepRecord


class Pretended:
    """A training whose clock is ours: a step takes so long, measuring so long."""

    def __init__(self, step: float, measuring: float, budget: float | None, every: int = 1) -> None:
        self.now = self.spent = 0.0
        self._step, self._measuring = step, measuring
        self.cadence = Cadence(every, budget, lambda: self.now)
        self.measured: list[int] = []

    def run(self, first: int, last: int, losses: dict[int, float] | None = None) -> None:
        for step in range(first, last + 1):
            cost = 1e-4 * self._step
            if self.cadence.due(step):
                self.measured.append(step)
                cost += self._measuring
            self.cadence.spend(cost)
            self.spent += cost
            self.now += self._step + cost
            loss = (losses or {}).get(step, 2.0)
            self.cadence.saw(StepRecord(step, 0, 0, loss=loss, loss_reduction=1))


@pytest.mark.parametrize("measuring", [0.001, 0.05, 0.5, 3.0])
def test_the_share_of_the_time_stays_under_the_budget(measuring: float) -> None:
    training = Pretended(step=1.0, measuring=measuring, budget=0.01)
    training.run(1, 30_000)
    assert training.spent / training.now <= 0.0101
    assert len(training.measured) >= 30


def test_what_costs_less_than_the_budget_is_measured_at_every_step() -> None:
    training = Pretended(step=1.0, measuring=0.004, budget=0.01)
    training.run(1, 1000)
    assert training.measured == list(range(1, 1001))


def test_the_first_steps_and_those_after_a_spike_are_all_measured() -> None:
    training = Pretended(step=1.0, measuring=0.05, budget=0.01)
    training.run(1, 2000, {1500: 40.0})
    assert training.measured[:64] == list(range(1, 65))
    assert set(range(1501, 1560)) <= set(training.measured)
    assert len([step for step in training.measured if 1000 <= step < 1500]) < 150


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_so_are_those_after_a_loss_that_is_no_number(value: float) -> None:
    training = Pretended(step=1.0, measuring=0.05, budget=0.01)
    training.run(1, 1600, {1500: value})
    assert set(range(1501, 1560)) <= set(training.measured)


def test_without_a_budget_every_nth_step_is_measured() -> None:
    training = Pretended(step=1.0, measuring=9.0, budget=None, every=3)
    training.run(1, 10)
    assert training.measured == [1, 4, 7, 10]


def test_every_and_budget_together() -> None:
    training = Pretended(step=1.0, measuring=0.02, budget=0.01, every=4)
    training.run(1, 1000)
    assert all((step - 1) % 4 == 0 for step in training.measured) and len(training.measured) == 250


@pytest.mark.parametrize("budget", [0, -0.1, 1.5, "1%"])
def test_a_budget_that_is_none_is_refused(budget: Any, tmp_path: Path) -> None:
    watching = stabkit.watch(nn.Linear(2, 2), None, tmp_path, budget=budget)
    with pytest.raises(UsageError, match="budget must be a share"), watching:
        pass


def test_a_spike_in_a_thinned_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real training of 2 ms a step, with statistics that are made to take 4 ms, and one loss that is sixty times as large."""
    look = ways.begin
    monkeypatch.setattr(ways, "begin", lambda *a: (time.sleep(0.004), look(*a))[1])
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = 700
    with stabkit.watch(model, optimizer, tmp_path / "run", budget=0.3, tensorboard=False):
        for step in range(1, steps + 1):
            x = torch.randn(32, 8)
            loss = (model(x) - x.sum(1, keepdim=True) * 0.1).square().mean() + 1.0
            loss = loss * (60 if step == 600 else 1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            time.sleep(0.002)
    run = stabkit.load(tmp_path / "run")
    assert not [event for event in run.events if event["event"] == "fault"]
    measured = run.stream.tensor_steps
    assert len(run.steps) == steps and len(measured) < 0.8 * steps
    told = [event for event in run.events if event["event"] == "cadence"]
    assert len(told) == 2 and told[0]["every"] >= 1
    found = [finding for finding in stabkit.analyze(run).findings if finding.rule in ("SK201", "SK203")]
    assert any(finding.first_step == 600 for finding in found), found
