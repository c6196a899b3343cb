"""The rules on schedules (SK409 to SK415) where they must be silent: correct idioms that look like mistakes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analyzer_runs import flat, make_run
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers

import stabkit
from stabkit.analyzers import ANALYZERS, analyze, judge
from stabkit.finding import Severity, Status
from stabkit.metric import Array
from stabkit.runlog import RunLog
from tests.cases.wiring.loop import Loop
from tests.cases.wiring.schedules import cosine, halving, linear

RULES = {analyzer.rule.code: analyzer for analyzer in ANALYZERS}
OURS = tuple(f"SK{code}" for code in range(409, 416))


def small() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def step(model: nn.Module, optimizer: Any) -> None:
    F.mse_loss(model(torch.randn(4, 4)), torch.randn(4, 4)).backward()
    optimizer.step()
    optimizer.zero_grad()


def scheduled(
    make: Callable[[Any], Any], logdir: Path, steps: int = 40, every: int = 1, metric: bool = False, **options: Any
) -> RunLog:
    """A correct loop that steps its scheduler after every so many optimizer steps."""
    model, optimizer = small()
    scheduler = make(optimizer)
    with stabkit.watch(model, optimizer, logdir, tensorboard=False, **options):
        for i in range(1, steps + 1):
            step(model, optimizer)
            if i % every == 0:
                scheduler.step(1.0) if metric else scheduler.step()
    return stabkit.load(logdir)


def blamed(run: RunLog) -> list[str]:
    """The rules on schedules that found something, information included."""
    return sorted({f.rule for f in flat(analyze(run))} & set(OURS))


def two_parts(optimizer: Any) -> Any:
    parts = [schedulers.LinearLR(optimizer, 0.1, total_iters=5), schedulers.CosineAnnealingLR(optimizer, 35)]
    return schedulers.SequentialLR(optimizer, parts, [5])


def cyclic(mode: str) -> Callable[[Any], Any]:
    return lambda o: schedulers.CyclicLR(o, 1e-4, 1e-3, step_size_up=6, mode=mode, gamma=0.99, cycle_momentum=False)


def transformers_linear(optimizer: Any) -> Any:
    return schedulers.LambdaLR(optimizer, lambda s: s / 5 if s < 5 else max(0.0, (40 - s) / 35))


def cooldown(optimizer: Any) -> Any:
    """Constant, then down to 0 a few steps before the end."""
    return schedulers.LambdaLR(optimizer, lambda s: min(1.0, max(0.0, (36 - s) / 10)))


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "constant": lambda o: schedulers.ConstantLR(o, 0.5, 10),
    "steps": lambda o: schedulers.StepLR(o, 10),
    "milestones": lambda o: schedulers.MultiStepLR(o, [10, 20]),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.9),
    "multiplicative": lambda o: schedulers.MultiplicativeLR(o, lambda s: 0.95),
    "linear": lambda o: schedulers.LinearLR(o, 0.1, total_iters=10),
    "polynomial": lambda o: schedulers.PolynomialLR(o, 40, power=2.0),
    "cosine": cosine(40),
    "cosine to a floor": lambda o: schedulers.CosineAnnealingLR(o, 40, eta_min=1e-4),
    "cosine that ends a step early": cosine(39),
    "warm restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 10),
    "warm restarts, longer each time": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 5, 2),
    "triangles": cyclic("triangular"),
    "halved triangles": cyclic("triangular2"),
    "shrinking triangles": cyclic("exp_range"),
    "one cycle": lambda o: schedulers.OneCycleLR(o, 1e-2, total_steps=41),
    "one cycle in three phases": lambda o: schedulers.OneCycleLR(o, 1e-2, total_steps=41, three_phase=True),
    "a cosine that swings from its start": lambda o: schedulers.LambdaLR(o, lambda s: 0.55 - 0.45 * math.cos(math.pi * s / 8)),
    "warmup, then cosine": two_parts,
    "linear warmup and decay": transformers_linear,
    "cooldown with a few steps at 0": cooldown,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_in_a_correct_loop_is_blamed_for_nothing(name: str, tmp_path: Path) -> None:
    assert blamed(scheduled(SCHEDULES[name], tmp_path)) == []


@pytest.mark.parametrize("name", ["steps", "exponential", "cosine", "warm restarts", "linear"])
def test_a_schedule_that_is_stepped_once_an_epoch_is_blamed_for_nothing(name: str, tmp_path: Path) -> None:
    assert blamed(scheduled(SCHEDULES[name], tmp_path, steps=80, every=10)) == []


def test_a_plateau_scheduler_stepped_before_the_optimizer_skips_nothing(tmp_path: Path) -> None:
    model, optimizer = small()
    scheduler = schedulers.ReduceLROnPlateau(optimizer, patience=1)
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(20):
            F.mse_loss(model(torch.randn(4, 4)), torch.randn(4, 4)).backward()
            scheduler.step(1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert blamed(stabkit.load(tmp_path)) == []


# SK409


@pytest.mark.parametrize("calls", [1, 5])
def test_leaving_out_a_first_rate_of_zero_or_bringing_a_schedule_forward_is_on_purpose(calls: int, tmp_path: Path) -> None:
    model, optimizer = small()
    first = 0.0 if calls == 1 else 0.1
    scheduler = schedulers.LambdaLR(optimizer, lambda s: max(first, s / 10))
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(calls):
            scheduler.step()
        for _ in range(8):
            step(model, optimizer)
            scheduler.step()
    assert blamed(stabkit.load(tmp_path)) == []


def test_a_schedule_whose_first_values_are_the_same_loses_nothing_by_a_wrong_order(tmp_path: Path) -> None:
    run = Loop(scheduler=lambda o: schedulers.StepLR(o, 100), schedule="before").run(tmp_path)
    assert judge(RULES["SK409"], run).status is Status.CLEAR


def test_an_epoch_whose_rate_is_skipped_is_found_at_the_third_call(tmp_path: Path) -> None:
    model, optimizer = small()
    scheduler = schedulers.ExponentialLR(optimizer, 0.5)
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(4):
            scheduler.step()  # as it was right before PyTorch 1.1
            for _ in range(5):
                step(model, optimizer)
    (finding,) = judge(RULES["SK409"], stabkit.load(tmp_path)).findings
    assert (finding.first_step, finding.event_step) == (11, 1)


def test_the_scheduler_of_a_discriminator_may_be_stepped_after_the_generators_backward(tmp_path: Path) -> None:
    (critic, first), (maker, second) = small(), small()
    ours = [halving(first), halving(second)]
    with stabkit.watch({"d": critic, "g": maker}, [first, second], tmp_path, tensorboard=False):
        for _ in range(8):
            first.zero_grad()
            critic(maker(torch.randn(4, 4)).detach()).mean().backward()
            first.step()
            second.zero_grad()
            critic(maker(torch.randn(4, 4))).mean().backward()
            second.step()
            for scheduler in ours:
                scheduler.step()
    assert blamed(stabkit.load(tmp_path)) == []


# SK410


def test_a_run_that_is_still_going_on_or_was_broken_off_is_not_said_to_have_no_scheduler_step(tmp_path: Path) -> None:
    run = Loop(steps=24, scheduler=halving, schedule="").run(tmp_path)
    going_on = tuple(event for event in run.events if event["event"] != "close")
    broken_off = tuple({**event, "error": "KeyboardInterrupt"} if event["event"] == "close" else event for event in run.events)
    for events in (going_on, broken_off):
        outcome = judge(RULES["SK410"], RunLog(streams=run.streams, events=events))
        assert outcome.status is Status.NOT_APPLICABLE and "not ended by itself" in outcome.reason


def test_a_trial_inside_the_first_epoch_of_a_longer_run_is_left_alone(tmp_path: Path) -> None:
    run = scheduled(SCHEDULES["steps"], tmp_path, steps=30, every=50, total_steps=500)
    assert judge(RULES["SK410"], run).status is Status.NOT_APPLICABLE


def test_without_a_scheduler_there_is_nothing_to_say_about_it(tmp_path: Path) -> None:
    run = Loop(steps=24).run(tmp_path)
    statuses = {code: judge(RULES[code], run).status for code in OURS}
    assert [code for code, status in statuses.items() if status is Status.CLEAR] == ["SK411"]  # it asks for rates only


# SK411


def rates(lr: Array, **more: Any) -> RunLog:
    return make_run(np.full(len(lr), 3.0), lr=lr, **more)


T = np.arange(400)


@pytest.mark.parametrize("length", [5, 50, 200])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_cosine_past_its_end_is_found_three_values_later_however_long_it_is(length: int, epoch: int) -> None:
    lr = 1e-5 + 1e-3 * (1 + np.cos(np.pi * (np.arange(3 * length * epoch) // epoch) / length)) / 2
    (finding,) = judge(RULES["SK411"], rates(lr)).findings
    assert (finding.event_step, finding.first_step) == (length * epoch + 1, (length + 3) * epoch + 1)


def test_torchs_own_cosine_is_known_to_its_last_digit_near_its_end() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = schedulers.CosineAnnealingLR(optimizer, 20_000)
    lr = []
    for _ in range(20_010):
        lr.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    (finding,) = judge(RULES["SK411"], rates(np.array(lr))).findings
    assert (finding.event_step, finding.first_step) == (20_001, 20_004)


@pytest.mark.parametrize(
    "lr",
    [
        np.where(T < 50, 0, 1e-3),
        np.where(T < 200, 1e-3, 0),
        np.where(T < 200, 1e-3, np.where(T < 300, 1e-4, 0)),
        np.maximum(0, 1e-3 * (1 - T / 385)),
        np.abs(1e-3 * (1 - T / 100)),
    ],
    ids=["frozen at first", "switched off", "switched off in two steps", "a few steps too many", "a triangle"],
)
def test_rates_that_are_no_schedule_past_its_end(lr: Array) -> None:
    assert judge(RULES["SK411"], rates(lr)).status is Status.CLEAR


def test_a_cycle_that_rests_at_zero_is_taken_for_a_schedule_past_its_end() -> None:
    run = rates(np.where(T % 100 < 50, 1e-3 * (1 - T % 100 / 50), 0))
    assert [f.first_step for f in judge(RULES["SK411"], run).findings] == [70]


def test_a_linear_decay_past_its_end_explains_the_steps_that_change_nothing() -> None:
    findings = analyze(rates(np.maximum(0, 1e-3 * (1 - T / 300)))).findings
    (finding,) = [f for f in findings if f.rule != "SK507"]  # the loss of these records stands still
    assert (finding.rule, finding.event_step, finding.first_step) == ("SK411", 301, 320)
    assert [f.rule for f in finding.consequences] == ["SK104"]
    assert "300" in finding.advice or "301" in finding.advice


# SK412


def test_a_schedule_of_epochs_that_moves_at_a_skipped_step_is_no_finding(tmp_path: Path) -> None:
    model, optimizer = small()
    scheduler, scaler = halving(optimizer), torch.amp.GradScaler("cpu", init_scale=8.0)
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for i in range(1, 21):
            loss = F.mse_loss(model(torch.randn(4, 4)), torch.randn(4, 4))
            scaler.scale(loss * (float("inf") if i == 10 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if i % 5 == 0:
                scheduler.step()
    assert judge(RULES["SK412"], stabkit.load(tmp_path)).status is Status.CLEAR


# SK413


def test_accelerate_steps_a_scheduler_once_for_each_process(tmp_path: Path) -> None:
    model, optimizer = small()
    scheduler = halving(optimizer)
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(8):
            for _ in range(2):
                (F.mse_loss(model(torch.randn(4, 4)), torch.randn(4, 4)) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
            for _ in range(4):
                scheduler.step()
    assert blamed(stabkit.load(tmp_path)) == []


def test_an_epoch_that_ends_between_two_micro_batches_is_no_habit(tmp_path: Path) -> None:
    model, optimizer = small()
    scheduler, seen = halving(optimizer), 0
    with stabkit.watch(model, optimizer, tmp_path, tensorboard=False):
        for _ in range(6):  # epochs of 7 batches, accumulated by twos
            for _ in range(7):
                (F.mse_loss(model(torch.randn(4, 4)), torch.randn(4, 4)) / 2).backward()
                seen += 1
                if seen % 2 == 0:
                    optimizer.step()
                    optimizer.zero_grad()
            scheduler.step()
    assert blamed(stabkit.load(tmp_path)) == []


# SK414


def groups(*lr: Array) -> RunLog:
    n = len(lr[0])
    return RunLog.from_arrays(np.arange(1, n + 1), group_values={"lr": np.stack(lr, axis=1)})


WARM = np.minimum(1.0, T / 50)
FALL = (1 + np.cos(np.pi * np.minimum(T, 390) / 390)) / 2


@pytest.mark.parametrize(
    ("slow", "fast"),
    [
        (1e-4 * WARM, 1e-3 * WARM),
        (1e-6 + 9.9e-5 * FALL, 1e-6 + 9.99e-4 * FALL),
        (np.maximum(1e-4 * 0.5 ** (T // 40), 1e-6), np.maximum(1e-3 * 0.5 ** (T // 40), 1e-6)),
        (np.where(T < 100, 0, 1e-3), np.full(400, 1e-3)),
        (np.full(400, 1e-3), np.where(T < 100, 1e-3, 1e-4)),
        (1e-4 + 1e-6 * T, 3e-4 - 1e-6 * T),
    ],
    ids=["warmup from 0", "cosine to one floor", "a floor in steps", "unfrozen", "apart later", "curves that cross"],
)
def test_groups_that_keep_or_lawfully_lose_their_difference(slow: Array, fast: Array) -> None:
    assert not judge(RULES["SK414"], groups(slow, fast)).findings


def test_groups_given_a_lower_rate_are_found_when_that_rate_moves() -> None:
    common = np.where(T < 120, 1e-5, 5e-6)
    run = groups(np.where(T < 100, 1e-4, common), np.where(T < 100, 1e-3, common))
    (finding,) = judge(RULES["SK414"], run).findings
    assert (finding.event_step, finding.first_step, finding.severity) == (101, 121, Severity.WARNING)


# SK415


def continued(make: Callable[[Any], Any], logdir: Path, first: int = 15, again: Callable[[Any], Any] | None = None) -> RunLog:
    """A run resumed with its scheduler's state, or with another schedule on purpose."""
    saved: list[Any] = []
    for steps in (first, 15):
        model, optimizer = small()
        scheduler = make(optimizer)
        parts = [model, optimizer, scheduler]
        for part, state in zip(parts if again is None else parts[:2], saved, strict=False):
            part.load_state_dict(copy.deepcopy(state))
        if saved and again is not None:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] = 3e-4
            scheduler = again(optimizer)
        with stabkit.watch(model, optimizer, logdir, tensorboard=False):
            for _ in range(steps):
                step(model, optimizer)
                scheduler.step()
        saved = copy.deepcopy([part.state_dict() for part in parts])
    return stabkit.load(logdir)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_was_loaded_goes_on(name: str, tmp_path: Path) -> None:
    assert "SK415" not in blamed(continued(SCHEDULES[name], tmp_path))


def test_a_cycle_that_begins_anew_exactly_at_the_resume_goes_on(tmp_path: Path) -> None:
    run = continued(lambda o: schedulers.CosineAnnealingWarmRestarts(o, 15), tmp_path)
    assert judge(RULES["SK415"], run).status is Status.CLEAR


def test_another_schedule_on_purpose_is_another_schedule(tmp_path: Path) -> None:
    run = continued(cosine(15), tmp_path, again=linear(15))
    assert judge(RULES["SK415"], run).status is Status.CLEAR


def test_a_constant_rate_has_no_schedule_to_lose(tmp_path: Path) -> None:
    run = continued(lambda o: schedulers.LambdaLR(o, lambda s: 1.0), tmp_path)
    assert judge(RULES["SK415"], run).status is Status.CLEAR


def test_a_resume_into_another_directory_is_judged_by_its_scheduler(tmp_path: Path) -> None:
    for loads in (True, False):
        model, optimizer = small()
        scheduler = halving(optimizer)
        for _ in range(20):
            step(model, optimizer)
            scheduler.step()
        if not loads:
            scheduler = halving(optimizer)
        with stabkit.watch(model, optimizer, tmp_path / str(loads), tensorboard=False):
            for _ in range(10):
                step(model, optimizer)
                scheduler.step()
        found = judge(RULES["SK415"], stabkit.load(tmp_path / str(loads))).findings
        assert [f.event_step for f in found] == ([] if loads else [21])
