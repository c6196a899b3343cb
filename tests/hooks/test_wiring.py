"""What the recorders keep of the order in which a loop does things: each fact, and its absence from a correct loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

import stabkit
from tests.cases.wiring.loop import IMPLEMENTATIONS, Loop

FACTS = (
    "clips_before_backward", "clips_between_backwards", "clips_after_backward", "kept_gradients", "dropped_backwards",
    "undivided_losses", "step_outside_scaler", "scaler_updates", "scheduler_steps_before_backward",
    "scheduler_steps_between_backwards", "scheduler_steps_after_backward",
)  # fmt: skip
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def facts(run: stabkit.RunLog, step: int = 3) -> dict[str, float]:
    """The facts that are not 0 in a step."""
    at = int(np.flatnonzero(run.steps == step)[0])
    values = {name: float(run.series(name).values[at]) for name in FACTS}
    return {name: value for name, value in values.items() if value}


def halved(optimizer: Any) -> Any:
    return schedulers.LambdaLR(optimizer, lambda step: 0.5**step)


AFTER = {"clips_after_backward": 1.0}
SCALED = {"scaler_updates": 1.0}
CASES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "plain": ({}, AFTER),
    "zeroed in place": ({"to_none": False}, AFTER),
    "zeroed before": ({"zero": "before"}, AFTER),
    "accumulated": ({"micro_batches": 4}, AFTER),
    "accumulated, not divided": ({"micro_batches": 4, "divide": False}, AFTER | {"undivided_losses": 4.0}),
    "accumulated and scaled, not divided": (
        {"micro_batches": 3, "divide": False, "scaler": True}, AFTER | SCALED | {"undivided_losses": 3.0}
    ),
    "scaled": ({"scaler": True}, AFTER | SCALED),
    "scaled and never clipped": ({"scaler": True, "clip": ""}, SCALED),
    "clipped by hand": ({"clip": "by hand"}, {}),
    "scheduled": ({"scheduler": halved}, AFTER | {"scheduler_steps_before_backward": 1.0}),
    "never zeroed": ({"zero": ""}, AFTER | {"kept_gradients": 1.0}),
    "never zeroed, accumulated": ({"zero": "", "micro_batches": 3}, AFTER | {"kept_gradients": 1.0}),
    "clipped before backward": ({"clip": "before", "to_none": False}, {"clips_before_backward": 1.0}),
    "clipped before backward, without gradients": ({"clip": "before"}, {"clips_before_backward": 1.0}),
    "clipped per micro-batch": (
        {"clip": "between", "micro_batches": 3}, {"clips_between_backwards": 2.0, "clips_after_backward": 1.0}
    ),
    "stepped beside the scaler": (
        {"scaler": True, "step_through": False, "update": False, "clip": "", "unscale": False}, {"step_outside_scaler": 2.0}
    ),
    "skipped": ({"scaler": True, "overflows": (3,)}, AFTER | SCALED),
    "skipped and never clipped": ({"scaler": True, "clip": "", "overflows": (3,)}, SCALED),
    "unscaled by hand, then stepped beside the scaler": (
        {"scaler": True, "step_through": False, "update": False, "clip": "by hand", "unscale": False},
        {"step_outside_scaler": 3.0},
    ),
    "unscaled, then stepped beside the scaler": (
        {"scaler": True, "step_through": False}, AFTER | SCALED | {"step_outside_scaler": 1.0}
    ),
    "scheduled before the optimizer": (
        {"scheduler": halved, "schedule": "before"}, AFTER | {"scheduler_steps_after_backward": 1.0}
    ),
    "scheduled per micro-batch": (
        {"scheduler": halved, "schedule": "micro", "micro_batches": 3},
        AFTER | {"scheduler_steps_between_backwards": 2.0, "scheduler_steps_after_backward": 1.0},
    ),
}  # fmt: skip


@implementations
@pytest.mark.parametrize("name", CASES)
def test_what_the_loop_did(name: str, implementation: str, tmp_path: Path) -> None:
    options, expected = CASES[name]
    run = Loop(implementation=implementation, steps=4, **options).run(tmp_path)
    assert facts(run) == expected
    assert not any(event["event"] == "fault" for event in run.events)


@implementations
@pytest.mark.parametrize("unscale", [True, False])
def test_the_scale_that_clipping_found(unscale: bool, implementation: str, tmp_path: Path) -> None:
    run = Loop(implementation=implementation, scaler=True, unscale=unscale).run(tmp_path)
    assert set(run.series("clip_scale").values) == {1.0 if unscale else 1024.0}


def test_a_clip_without_limit_only_measures(tmp_path: Path) -> None:
    model, optimizer = make()
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(3):
            nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
            train(model, optimizer)
    assert facts(stabkit.load(tmp_path)) == {}


def test_clipping_another_model_is_not_ours(tmp_path: Path) -> None:
    model, optimizer = make()
    other, _ = make()
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(3):
            other(torch.ones(2, 4)).sum().backward()
            nn.utils.clip_grad_norm_(other.parameters(), 1.0)
            train(model, optimizer)
    assert facts(stabkit.load(tmp_path)) == {}


def test_two_losses_each_clipped_before_the_next_are_not_mixed(tmp_path: Path) -> None:
    parts = [make()[0], make()[0]]
    optimizer = torch.optim.AdamW([p for part in parts for p in part.parameters()])
    with stabkit.watch(nn.ModuleList(parts), optimizer, tmp_path, tensorboard=False):
        for _ in range(3):
            for part in parts:
                part(torch.ones(2, 4)).sum().backward()
                nn.utils.clip_grad_norm_(part.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert facts(stabkit.load(tmp_path)) == {"clips_after_backward": 2.0}


def test_a_clip_of_all_parameters_is_of_those_with_gradients(tmp_path: Path) -> None:
    parts = [make()[0], make()[0]]
    model, (one, other) = nn.ModuleList(parts), [torch.optim.AdamW(part.parameters()) for part in parts]
    with stabkit.watch(model, [one, other], tmp_path, tensorboard=False):
        for _ in range(3):
            parts[0](torch.ones(2, 4)).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            one.step()
            one.zero_grad()
            train(parts[1], other)
    run = stabkit.load(tmp_path)
    assert (facts(run.optimizer(0)), facts(run.optimizer(1))) == (AFTER, {})


ZEROING: dict[str, Callable[[nn.Module], Any]] = {
    "in place": lambda model: [p.grad.zero_() for p in model.parameters()],
    "behind the version counter": lambda model: [p.grad.data.zero_() for p in model.parameters()],
    "through an alias": lambda model: [p.grad.detach().zero_() for p in model.parameters()],
    "by the model": lambda model: model.zero_grad(set_to_none=False),
    "to nothing": lambda model: model.zero_grad(),
}


@pytest.mark.parametrize("how", ZEROING)
def test_gradients_zeroed_in_any_way_are_not_kept(how: str, tmp_path: Path) -> None:
    model, optimizer = make()
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(4):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            ZEROING[how](model)
    assert facts(stabkit.load(tmp_path)) == {}


@pytest.mark.parametrize("how", ["tasks with heads of their own", "a number of tokens", "a weight"])
def test_losses_that_need_no_division_are_not_called_undivided(how: str, tmp_path: Path) -> None:
    trunk, heads = nn.Linear(4, 4), [nn.Linear(4, 2), nn.Linear(4, 2)]
    optimizer = torch.optim.AdamW(nn.ModuleList([trunk, *heads]).parameters())
    tokens = torch.tensor(7.0)
    with stabkit.watch(nn.ModuleList([trunk, *heads]), optimizer, tmp_path, tensorboard=False):
        for _ in range(4):
            for head in heads:
                own = heads[0] if how != "tasks with heads of their own" else head
                loss = nn.functional.mse_loss(own(trunk(torch.randn(3, 4))), torch.randn(3, 2))
                loss = {"a number of tokens": loss / tokens, "a weight": 0.3 * loss}.get(how, loss)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert facts(stabkit.load(tmp_path)) == {}


def test_gradients_thrown_away_are_counted(tmp_path: Path) -> None:
    model, optimizer = make()
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(3):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.zero_grad()
            train(model, optimizer)
    assert facts(stabkit.load(tmp_path)) == {"dropped_backwards": 1.0}


def test_the_discriminator_keeps_nothing_though_the_generator_reaches_it(tmp_path: Path) -> None:
    discriminator, optimizer = make()
    generator, other = make()
    with stabkit.watch({"d": discriminator, "g": generator}, [optimizer, other], tmp_path, tensorboard=False):
        for _ in range(4):
            optimizer.zero_grad()
            discriminator(generator(torch.ones(2, 4)).detach()).sum().backward()
            optimizer.step()
            other.zero_grad()
            discriminator(generator(torch.ones(2, 4))).sum().backward()
            other.step()
    run = stabkit.load(tmp_path)
    assert facts(run.optimizer(0)) == {"dropped_backwards": 1.0}
    assert facts(run.optimizer(1)) == {}


def test_the_making_of_a_scheduler_is_no_step_of_it(tmp_path: Path) -> None:
    model, optimizer = make()
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        parts = [schedulers.LinearLR(optimizer), schedulers.CosineAnnealingLR(optimizer, 10)]
        made = [
            schedulers.SequentialLR(optimizer, parts, [3]),
            schedulers.CosineAnnealingWarmRestarts(optimizer, 5),
            schedulers.OneCycleLR(optimizer, 0.1, total_steps=9),
        ]
        for _ in range(3):
            train(model, optimizer)
            for scheduler in made:
                scheduler.step()
    run = stabkit.load(tmp_path)
    assert list(run.series("scheduler_steps_before_backward").values) == [0, 3, 3]
    kinds = [event["kind"] for event in run.events if event["event"] == "scheduler"]
    assert kinds == ["SequentialLR", "CosineAnnealingWarmRestarts", "OneCycleLR"]


def test_a_scheduler_that_is_attached_but_never_stepped_leaves_a_note(tmp_path: Path) -> None:
    run = Loop(scheduler=halved, schedule="").run(tmp_path)
    assert [e["optimizer"] for e in run.events if e["event"] == "scheduled"] == [0]
    assert not [e for e in run.events if e["event"] == "scheduler"]
    assert not [e for e in Loop().run(tmp_path / "other").events if e["event"] == "scheduled"]


def test_parameters_with_gradients_in_no_optimizer_are_told_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model[0].parameters())
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(30):
            train(model, optimizer)
    (told,) = [e for e in stabkit.load(tmp_path).events if e["event"] == "orphans"]
    assert (told["parameters"], told["count"], told["step"]) == (["1.weight", "1.bias"], 2, 20)


def test_parameters_of_an_optimizer_that_is_not_watched_are_no_orphans(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer, other = (torch.optim.AdamW(part.parameters()) for part in model)
    model[0].bias.requires_grad_(False)
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(5):
            train(model, optimizer, other)
    assert not [e for e in stabkit.load(tmp_path).events if e["event"] == "orphans"]


@pytest.mark.parametrize("steps", [3, 30])
def test_parameters_that_no_gradient_reaches_are_told_once(steps: int, tmp_path: Path) -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "left out": nn.Linear(4, 4), "frozen": nn.Linear(4, 4)})
    model["frozen"].requires_grad_(False)
    outside = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.AdamW([*model.parameters(), outside])
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(steps):
            train(model["used"], optimizer)
    (told,) = [e for e in stabkit.load(tmp_path).events if e["event"] == "unreached"]
    names = ["left out.weight", "left out.bias", "optimizer0.group0.6"]
    assert (told["optimizer"], told["parameters"], told["count"], told["step"]) == (0, names, 3, min(steps, 20))


def test_an_optimizer_without_any_gradient_has_none_left_out(tmp_path: Path) -> None:
    model, optimizer = make()
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(4):
            optimizer.step()
    assert not [e for e in stabkit.load(tmp_path).events if e["event"] == "unreached"]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_how_the_run_ended_is_in_the_log(error: Any, tmp_path: Path) -> None:
    model, optimizer = make()
    try:
        with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
            train(model, optimizer)
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert [e["error"] for e in stabkit.load(tmp_path).events if e["event"] == "close"] == [error and error.__name__]


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    return model, torch.optim.AdamW(model.parameters())


def train(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 4)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
