"""One look after a step tells what was before it, or says that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from stabkit.hooks import once
from stabkit.hooks.expectation import Expectation
from stabkit.hooks.statistics import AdamStep, native
from stabkit.hooks.statistics.table import Table

pytestmark = pytest.mark.skipif(native.finder is None, reason="the extension was not built, or torch is older than 2.10")

LOOKS = 2  # steps that are tried and proved before one look will do


class Training:
    """Three tensors whose gradients are given."""

    def __init__(self, kind: Any = torch.optim.AdamW, **options: Any) -> None:
        self.model = nn.ParameterList(nn.Parameter(torch.randn(n)) for n in (5, 64, 3000))
        self.parameters = list(self.model.parameters())
        self.optimizer = kind(self.parameters, **{"lr": 1e-3, "weight_decay": 0.1, **options})
        self.weights: list[list[float]] = []
        self.momenta: list[list[float]] = []
        self.dots: list[list[float]] = []

    def step(self, scale: float = 1.0, spoil: int | None = None) -> None:
        """A step, and what was before it in float64."""
        for p in self.parameters:
            p.grad = scale * torch.randn_like(p)
        if spoil is not None:
            self.parameters[spoil].grad[0] = torch.nan  # type: ignore[index]
        moments = [self.optimizer.state[p].get("exp_avg", torch.zeros_like(p)).double() for p in self.parameters]
        sign = -1 if self.optimizer.param_groups[0]["maximize"] else 1
        grads = [sign * p.grad.double() for p in self.parameters]  # type: ignore[union-attr]
        self.weights.append([float(p.detach().double().square().sum()) for p in self.parameters])
        self.momenta.append([float(m.square().sum()) for m in moments])
        self.dots.append([float((g * m).sum()) for g, m in zip(grads, moments, strict=True)])
        self.optimizer.step()


def columns(read: Callable[..., Any], *names: str) -> list[Any]:
    return [read().streams[0].columns[name] for name in names]


@pytest.fixture
def looked_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each step that was measured in one look."""
    seen: list[int] = []
    measured = Table.step
    monkeypatch.setattr(Table, "step", lambda self, *a: (seen.append(1), measured(self, *a))[1])
    return seen


@pytest.mark.parametrize("options", [
    {"fused": True}, {"foreach": True}, {"foreach": False}, {"fused": True, "amsgrad": True}, {"maximize": True},
    {"betas": (0.5, 0.99)}, {"kind": torch.optim.Adam, "weight_decay": 0.0}, {"lr": 30.0, "weight_decay": 1e-3},
])  # fmt: skip
def test_weights_and_moments_before_the_step(options: dict[str, Any], watching: Any, read: Any, looked_once: list[int]) -> None:
    training = Training(**options)
    with watching(training.model, training.optimizer):
        for scale in (1, 1, 1, 3, 0.01, 20, 1, 0, 1):
            training.step(scale)
    assert len(looked_once) == 9 - LOOKS - 1
    weights, momenta, dots, grads = columns(read, "weight_sumsq", "momentum_sumsq", "momentum_dot", "grad_used_sumsq")
    np.testing.assert_allclose(weights[-9:], training.weights, rtol=1e-5)
    np.testing.assert_allclose(momenta[1 - 9 :], training.momenta[1:], rtol=1e-5)
    size = np.sqrt(grads[1 - 9 :] * momenta[1 - 9 :])
    assert (np.abs(dots[1 - 9 :] - training.dots[1:]) <= 1e-5 * size + 1e-30).all()


def test_coupled_decay_and_little_momentum_are_looked_at_twice(watching: Any, read: Any, looked_once: list[int]) -> None:
    for number, training in enumerate((Training(torch.optim.Adam), Training(betas=(0.0, 0.99)))):
        with watching(training.model, training.optimizer, first_step=None if number == 0 else 7):
            for _ in range(6):
                training.step()
    assert not looked_once


def test_what_a_gradient_has_drowned_is_not_made_up(watching: Any, read: Any) -> None:
    training = Training()
    with watching(training.model, training.optimizer):
        for scale in (1, 1, 1, 1, 1e7, 1):
            training.step(scale)
    momenta, dots = columns(read, "momentum_sumsq", "momentum_dot")
    assert np.isnan(dots[-2]).all(), "m holds nothing of what it was"
    np.testing.assert_allclose(momenta[-2], training.momenta[-2], rtol=1e-5)  # the step before had measured that
    assert np.isfinite(dots[-1]).all()


def test_the_step_that_makes_weights_nan_tells_what_they_were(watching: Any, read: Any, looked_once: list[int]) -> None:
    training = Training(fused=True)
    with watching(training.model, training.optimizer):
        for step in range(7):
            training.step(spoil=1 if step == 5 else None)
    assert looked_once
    weights, momenta, nonfinite = columns(read, "weight_sumsq", "momentum_sumsq", "weight_nonfinite")
    assert nonfinite[-2].tolist() == [0, 1, 0]
    np.testing.assert_allclose(weights[-2], training.weights[5], rtol=1e-5)
    np.testing.assert_allclose(momenta[-2], training.momenta[5], rtol=1e-5)
    assert np.isnan(weights[-1]).tolist() == [False, True, False], "of the next step they were NaN before it"


def test_after_a_gap_what_is_lost_is_not_taken_from_long_ago(watching: Any, read: Any) -> None:
    training = Training(fused=True)
    with watching(training.model, training.optimizer, every=4):
        for step in range(1, 18):
            training.step(spoil=1 if step == 17 else None)
    [weights] = columns(read, "weight_sumsq")
    assert read().streams[0].tensor_steps[-1] == 17
    assert np.isnan(weights[-1]).tolist() == [False, True, False]


def test_a_skipped_step_is_told_as_it_is(watching: Any, read: Any, looked_once: list[int]) -> None:
    training = Training(foreach=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    with watching(training.model, training.optimizer):
        for step in range(8):
            for p in training.parameters:
                p.grad = 4.0 * torch.randn_like(p)
            if step == 5:
                training.parameters[1].grad[0] = torch.inf  # type: ignore[index]
            before = [float(p.detach().double().square().sum()) for p in training.parameters]
            training.weights.append(before)
            scaler.scale(torch.zeros(()))
            scaler.step(training.optimizer)
            scaler.update()
    assert looked_once
    weights, updates = columns(read, "weight_sumsq", "update_sumsq")
    np.testing.assert_allclose(weights[-8:], training.weights, rtol=1e-5)
    assert (updates[-3] == 0).all()


@example(1, 0, 933.0, 0.9, 10829, False)
@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 3000), exponent=st.integers(-16, 16), ratio=st.floats(1e-3, 1e3),
    beta1=st.sampled_from([0.5, 0.9, 0.99]), seed=st.integers(0, 2**16), maximize=st.booleans(),
)  # fmt: skip
def test_at_any_magnitude(size: int, exponent: int, ratio: float, beta1: float, seed: int, maximize: bool) -> None:
    """Against float64 worked out before torch's own step."""
    torch.manual_seed(seed)
    p = nn.Parameter(torch.randn(size) * 10.0**exponent)
    optimizer = torch.optim.AdamW([p], lr=10.0 ** (exponent - 3), weight_decay=0.0, betas=(beta1, 0.99), maximize=maximize)
    for scale in (1.0, ratio):
        p.grad = torch.randn(size) * scale * 10.0**exponent
        moment = optimizer.state[p]["exp_avg"].double() if optimizer.state[p] else torch.zeros(size, dtype=torch.float64)
        weights = float(p.detach().double().square().sum())
        optimizer.step()
    table = Table([p], optimizer.state)
    assert table.look(moments=3)
    group = optimizer.param_groups[0]
    step = AdamStep(group["lr"], beta1, 0.99, group["eps"], 0.0, 2, maximize, decoupled=True)
    weight, dot, momentum = table.step([step])[0, :3].tolist()
    grad = p.grad.double() * (-1 if maximize else 1)  # type: ignore[union-attr]
    assert weight == pytest.approx(weights, rel=1e-4)
    if np.isnan(dot):  # little of what it was is left in m
        assert (1 - beta1) * float(grad.norm()) > 200 * beta1 * float(moment.norm())
        return
    assert momentum == pytest.approx(float(moment.square().sum()), rel=1e-4)
    assert dot == pytest.approx(float(grad @ moment), abs=1e-4 * float(grad.norm() * moment.norm()))


def test_enough_needs_a_step_that_was_read(watching: Any) -> None:
    training = Training()
    from stabkit.hooks.optimizer import group_values
    from stabkit.hooks.roster import Roster

    assert not once.enough(training.optimizer, Roster(training.optimizer), group_values(training.optimizer))


@pytest.fixture
def foreseen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows with each clipping call of which one gradient was looked at: the gradients after it, None if it surprised."""
    after, found = Expectation.after, []

    def noted(*args: Any) -> Any:
        found.append(after(*args))
        return found[-1]

    monkeypatch.setattr(Expectation, "after", noted)
    return found


def in_buckets(parameters: list[nn.Parameter], counts: list[int]) -> None:
    """Gradients that are views of as many buckets, as of DDP with `gradient_as_bucket_view`: they share a version."""
    rest = iter(parameters)
    for count in counts:
        members = [next(rest) for _ in range(count)]
        memory = torch.zeros(sum(p.numel() for p in members))
        for p, part in zip(members, memory.split([p.numel() for p in members]), strict=True):
            p.grad = part.view_as(p)


def clipped_steps(training: Any, steps: int) -> list[float]:
    norms = []
    for _ in range(steps):
        training.optimizer.zero_grad(set_to_none=False)
        sum((p * torch.randn_like(p)).sum() for p in training.parameters).backward()
        norms.append(float(nn.utils.clip_grad_norm_(training.parameters, 0.5)))
        training.optimizer.step()
    return norms


@pytest.mark.parametrize("buckets", [[3], [1, 2], [2, 1], [1, 1, 1]])
def test_gradients_that_are_views_of_buckets_are_clipped_like_others(
    buckets: list[int], watching: Any, read: Any, foreseen: list[Any]
) -> None:
    training = Training(fused=True)
    in_buckets(training.parameters, buckets)
    with watching(training.model, training.optimizer):
        norms = clipped_steps(training, 8)
    assert read().series("grad_norm").values.tolist() == pytest.approx(norms, rel=1e-5)
    assert len(foreseen) == 6 and all(foreseen), "two calls are learnt from, the others were foreseen"


@pytest.mark.parametrize("first", [[3], [1, 2], [1, 1, 1]])
@pytest.mark.parametrize("then", [[3], [2, 1], [1, 2], [1, 1, 1]])
def test_buckets_that_change_are_noticed(first: list[int], then: list[int], watching: Any, read: Any) -> None:
    """What is expected of clipping is then wrong: no norm is told that is not the right one."""
    training = Training(fused=True)
    in_buckets(training.parameters, first)
    with watching(training.model, training.optimizer):
        norms = clipped_steps(training, 5)
        in_buckets(training.parameters, then)
        norms += clipped_steps(training, 5)
    told = read().series("grad_norm").values
    known = ~np.isnan(told)
    assert known.sum() >= 8 and known[-3:].all()
    assert told[known] == pytest.approx(np.array(norms)[known], rel=1e-5)


def test_two_calls_in_turn_are_learnt_apart(watching: Any, read: Any, foreseen: list[Any]) -> None:
    training = Training(fused=True)
    squares = []
    with watching(training.model, training.optimizer):
        for _ in range(6):
            training.optimizer.zero_grad()
            sum((p * torch.randn_like(p)).sum() for p in training.parameters).backward()  # type: ignore[union-attr]
            squares.append(sum(float(p.grad.square().sum()) for p in training.parameters))  # type: ignore[union-attr]
            nn.utils.clip_grad_norm_(training.parameters[:1], 0.5)
            nn.utils.clip_grad_norm_(training.parameters[1:], 0.1)
            training.optimizer.step()
    assert len(foreseen) == 8 and all(foreseen)
    assert np.square(read().table("grad_norm").values[1:]).sum(axis=1) == pytest.approx(np.array(squares), rel=1e-5)
