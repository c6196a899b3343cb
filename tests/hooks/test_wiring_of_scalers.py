"""Whose gradients a scaler unscaled, stepped and refused to step: also through wrappers, with several scalers, and twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_wiring import AFTER, SCALED, facts, make
from torch import nn

import stabkit
from tests.cases.wiring.loop import Loop


class Slow(torch.optim.Optimizer):
    """A wrapper as Lookahead is one: an optimizer of the same parameters that has another step."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.param_groups = base, base.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


def test_a_wrapper_given_to_the_scaler_is_not_passed_by(tmp_path: Path) -> None:
    model, optimizer = make()
    wrapper, scaler = Slow(optimizer), torch.amp.GradScaler("cpu", init_scale=1024.0)
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(4):
            scaler.scale(model(torch.ones(2, 4)).sum()).backward()
            scaler.unscale_(wrapper)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(wrapper)
            scaler.update()
            wrapper.zero_grad()
    run = stabkit.load(tmp_path)
    assert facts(run) == AFTER | SCALED
    assert not run.has("clip_scale"), "whose gradients were unscaled is not known"


def test_two_scalers_unscale_each_its_own(tmp_path: Path) -> None:
    pairs = [make(), make()]
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in pairs]
    with stabkit.watch(nn.ModuleList([m for m, _ in pairs]), [o for _, o in pairs], tmp_path, tensorboard=False):
        for _ in range(4):
            for (model, _), scaler in zip(pairs, scalers, strict=True):
                scaler.scale(model(torch.ones(2, 4)).sum()).backward()
            for (model, optimizer), scaler in zip(pairs, scalers, strict=True):
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    run = stabkit.load(tmp_path)
    assert [set(run.optimizer(i).series("clip_scale").values) for i in (0, 1)] == [{1.0}, {1.0}]


@pytest.mark.parametrize("unscale", [True, False])
def test_what_the_scaler_refused_is_told(unscale: bool, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"since the last update|after step"):
        Loop(scaler=True, update=False, unscale=unscale).run(tmp_path)
    events = stabkit.load(tmp_path).events
    assert [(e["optimizer"], e["step"]) for e in events if e["event"] == "refused"] == [(0, 1)]


def test_a_scaler_stepped_twice_on_the_same_gradients_has_refused_nothing_of_ours(tmp_path: Path) -> None:
    model, optimizer = make()
    scaler = torch.amp.GradScaler("cpu")
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        scaler.scale(model(torch.ones(2, 4)).sum()).backward()
        scaler.step(optimizer)
        with pytest.raises(RuntimeError, match="already been called"):
            scaler.step(optimizer)
    assert not [e for e in stabkit.load(tmp_path).events if e["event"] == "refused"]
