"""Everything a log holds is true: compared with float64 references worked out around every step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import agree, worst
from oracle import Oracle
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from zoo import Net, Zoo

NAN = math.nan
VARIANTS = [{"amsgrad": True}, {"maximize": True}, {"amsgrad": True, "maximize": True}, {"betas": (0.5, 0.9), "eps": 1e-3}]
IMPLEMENTATIONS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
LIMIT = 0.3
Model = Any

clip_partially_applied = functools.partial(clip_grad_norm_, max_norm=LIMIT)


def titan(model: Model) -> None:
    total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), LIMIT, total)


NORM_CLIPS: dict[str, Callable[[Model], Any]] = {
    "imported early": lambda model: clip_grad_norm_(list(model.parameters()), LIMIT),
    "partial": lambda model: clip_partially_applied(list(model.parameters())),
    "attribute": lambda model: torch.nn.utils.clip_grad_norm_(tuple(model.parameters()), LIMIT),
    "generator": lambda model: clip_grad_norm_(model.parameters(), max_norm=LIMIT),
    "keyword": lambda model: clip_grad_norm_(parameters=model.parameters(), max_norm=LIMIT),
    "titan": titan,
}
CLIPS = {
    "none": lambda model: None,
    **NORM_CLIPS,
    "value": lambda model: clip_grad_value_(model.parameters(), 0.01),
}


def groups_of(model: Model) -> list[dict[str, Any]]:
    """Two groups with rates and decays of their own."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices}, {"params": others, "lr": 3e-3, "weight_decay": 0.0}]


def adamw(model: Model, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups_of(model), **{"lr": 1e-2, "weight_decay": 0.1, **options})


def train(
    model: Model,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], torch.Tensor] | None = None,
    clip: str = "none",
    steps: int = 5,
    accumulate: int = 1,
    divide: bool = True,
    bf16: bool = False,
    set_to_none: bool = True,
    zero_first: bool = False,
) -> Oracle:
    """A training loop with the oracle looking on."""
    oracle = Oracle(optimizer)
    for step in range(steps):
        values = []
        if zero_first:
            optimizer.zero_grad(set_to_none=set_to_none)
        for _ in range(accumulate):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                value = loss(step) if loss else model.loss()
                value = value / accumulate if divide and accumulate > 1 else value
            value.backward()
            oracle.backward(value)
            values.append(float(value.detach().double()))
        oracle.before_clip(LIMIT if clip in NORM_CLIPS else NAN)
        CLIPS[clip](model)
        oracle.before_step()
        optimizer.step()
        oracle.after_step(sum(values) if divide else sum(values) / accumulate)
        if not zero_first:
            optimizer.zero_grad(set_to_none=set_to_none)
    return oracle


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_clip(watching: Any, read: Any, implementation: str, bf16: bool, clip: str) -> None:
    model = Net()
    optimizer = adamw(model, **IMPLEMENTATIONS[implementation])
    with watching(model, optimizer):
        oracle = train(model, optimizer, clip=clip, accumulate=2, bf16=bf16)
    agree(read(), oracle)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("exact", [False, True], ids=["intended", "exact"])
def test_every_variant(watching: Any, read: Any, implementation: str, options: dict[str, Any], exact: bool) -> None:
    model = Zoo(gaps=implementation != "fused")
    optimizer = adamw(model, **IMPLEMENTATIONS[implementation], **options)
    with watching(model, optimizer, exact_updates=exact):
        oracle = train(model, optimizer, clip="generator")
    agree(read(), oracle)


def test_adam_with_coupled_decay(watching: Any, read: Any) -> None:
    model = Zoo()
    optimizer = torch.optim.Adam(groups_of(model), lr=1e-2, weight_decay=0.1)
    with watching(model, optimizer):
        oracle = train(model, optimizer)
    agree(read(), oracle)


def test_adam_with_decoupled_decay(watching: Any, read: Any) -> None:
    model = Zoo()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True)
    with watching(model, optimizer):
        train(model, optimizer)
    applied = torch.tensor(read().table("update_norm").values[1:])
    assert torch.isfinite(applied).all()


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("divide", [True, False], ids=["divided", "undivided"])
def test_accumulation(watching: Any, read: Any, accumulate: int, divide: bool) -> None:
    model = Net()
    optimizer = adamw(model)
    with watching(model, optimizer):
        oracle = train(model, optimizer, accumulate=accumulate, divide=divide, clip="generator")
    run = read()
    agree(run, oracle)
    assert set(run.series("loss_reduction").values) == {1 if accumulate == 1 else 2 if divide else 3}


@pytest.mark.parametrize("set_to_none", [True, False], ids=["none", "zero"])
@pytest.mark.parametrize("zero_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("clip", ["none", "generator", "value"])
def test_zero_grad(watching: Any, read: Any, set_to_none: bool, zero_first: bool, clip: str) -> None:
    model = Zoo()
    optimizer = adamw(model)
    with watching(model, optimizer):
        oracle = train(model, optimizer, clip=clip, accumulate=2, set_to_none=set_to_none, zero_first=zero_first)
    agree(read(), oracle)


@pytest.mark.parametrize("factor", [1e-18, 1e-9, 1.0, 1e9, 1e18])
@pytest.mark.parametrize("clip", ["none", "generator", "value"])
def test_gradients_of_any_size(watching: Any, read: Any, factor: float, clip: str) -> None:
    model = Zoo()
    optimizer = adamw(model)
    with watching(model, optimizer):
        oracle = train(model, optimizer, lambda step: model.loss(factor), clip)
    agree(read(), oracle)


@pytest.mark.parametrize("scale", [1e-18, 1e-9, 1e-3, 1e9, 1e18])
@pytest.mark.parametrize("exact", [False, True], ids=["intended", "exact"])
def test_weights_of_any_size(watching: Any, read: Any, scale: float, exact: bool) -> None:
    model = Zoo(scale)
    optimizer = adamw(model)
    with watching(model, optimizer, exact_updates=exact):
        oracle = train(model, optimizer)
    agree(read(), oracle)


@pytest.mark.parametrize("lr", [0.0, 1e-9, 1.0, 5.0, 10.0, 11.0])
def test_rates_of_any_size(watching: Any, read: Any, lr: float) -> None:
    """With a decay of 0.1, a rate of 10 wipes the weights out: the weights before cannot be worked back."""
    model = Zoo()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    with watching(model, optimizer):
        oracle = train(model, optimizer)
    agree(read(), oracle)


@pytest.mark.parametrize("height", [1e4, 1e6])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("clip", ["none", "generator"])
def test_spike_in_mid_run(watching: Any, read: Any, height: float, implementation: str, clip: str) -> None:
    model = Zoo(gaps=implementation != "fused")
    optimizer = adamw(model, **IMPLEMENTATIONS[implementation])
    with watching(model, optimizer):
        oracle = train(model, optimizer, lambda step: model.loss(height if step == 4 else 1.0), clip, steps=8)
    agree(read(), oracle)


def test_a_wide_spread_of_sizes_under_one_clip(watching: Any, read: Any) -> None:
    """A coefficient of 1e-20 wipes out a gradient of 1e-28: what was there before cannot be worked back, and is missing."""
    model = torch.nn.ParameterDict({"big": torch.nn.Parameter(torch.ones(8)), "small": torch.nn.Parameter(torch.ones(8))})
    optimizer = torch.optim.AdamW(model.parameters())
    with watching(model, optimizer):
        for _ in range(2):
            (1e15 * model["big"].sum() + 1e-26 * model["small"].sum()).backward()
            clip_grad_norm_(model.parameters(), 1e-4)
            optimizer.step()
            optimizer.zero_grad()
    values = read().table("grad_norm").values[1:]
    assert values[:, 0] == pytest.approx(1e15 * math.sqrt(8), rel=1e-4)
    assert all(math.isnan(v) or v == pytest.approx(1e-26 * math.sqrt(8), rel=1e-4) for v in values[:, 1])


@pytest.mark.parametrize("implementation", ["single", "foreach"])
def test_complex_parameters(watching: Any, read: Any, implementation: str) -> None:
    model = torch.nn.ParameterDict({"c": torch.nn.Parameter(torch.randn(6, dtype=torch.complex64))})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **IMPLEMENTATIONS[implementation])
    with watching(model, optimizer):
        oracle = train(model, optimizer, lambda step: (model["c"] * torch.randn(6)).abs().square().sum(), clip="generator")
    before = dict(worst)
    try:
        agree(read(), oracle)
    finally:
        worst.update(before)


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("clip", ["none", "generator", "titan", "value"])
def test_every_so_many_steps(watching: Any, read: Any, every: int, clip: str) -> None:
    model = Net()
    optimizer = adamw(model)
    with watching(model, optimizer, every=every):
        oracle = train(model, optimizer, clip=clip, steps=7)
    agree(read(), oracle, steps=list(range(1, 8, every)))


def test_rates_of_a_schedule(watching: Any, read: Any) -> None:
    model = Net()
    optimizer = adamw(model)
    oracle = Oracle(optimizer)
    with watching(model, optimizer):
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.2], total_steps=6)  # also cycles beta1
        for _ in range(6):
            loss = model.loss()
            loss.backward()
            oracle.backward(loss)
            oracle.before_step()
            optimizer.step()
            oracle.after_step(float(loss))
            scheduler.step()
            optimizer.zero_grad()
    agree(read(), oracle)


# ---- what cannot be proved is missing, not wrong -----------------------------------------------------------------------

UNPROVABLE = {"grad_norm", "tensor:grad_norm"}
NO_ONE_CLIP = {"clip_coefficient", "clip_max_norm"}


def steps_with(watching: Any, clip: Callable[[Any], Any], limit: float = NAN, every: int = 1) -> Oracle:
    """Three steps that clip in some unusual way; `clip` returns the norm torch found, if there is to be one coefficient."""
    model = Zoo()
    optimizer = adamw(model)
    oracle = Oracle(optimizer)
    with watching(model, optimizer, every=every):
        for _ in range(3):
            loss = model.loss()
            loss.backward()
            oracle.backward(loss)
            oracle.before_clip()
            found = clip(model)
            oracle.before_step()
            optimizer.step()
            coefficient = min(1.0, limit / (float(found) + 1e-6)) if found is not None else NAN
            oracle.after_step(float(loss), clip_max_norm=limit, clip_coefficient=coefficient)
            optimizer.zero_grad()
    return oracle


def test_clipping_by_hand(watching: Any, read: Any) -> None:
    def clip(model: Zoo) -> None:
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(0.5)

    oracle = steps_with(watching, clip)
    agree(read(), oracle, UNPROVABLE)


def test_clipping_by_hand_out_of_place(watching: Any, read: Any) -> None:
    def clip(model: Zoo) -> None:
        for p in model.parameters():
            if p.grad is not None:
                p.grad = p.grad * 0.5

    oracle = steps_with(watching, clip)
    agree(read(), oracle, UNPROVABLE)


def test_clipping_by_hand_after_a_clip(watching: Any, read: Any) -> None:
    def clip(model: Zoo) -> torch.Tensor:
        total = clip_grad_norm_(model.parameters(), 0.1)
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(0.5)
        return total

    oracle = steps_with(watching, clip, 0.1)
    agree(read(), oracle, UNPROVABLE)


def test_clipping_one_tensor_by_hand(watching: Any, read: Any) -> None:
    oracle = steps_with(watching, lambda model: print(model.matrix.grad.mul_(0.5)))
    place = next(i for i, p in enumerate(oracle.parameters()) if p.shape == (5, 7))
    for row in oracle.tensors["grad_norm"]:
        row[place] = NAN
    agree(read(), oracle, {"grad_norm"})


def test_a_clip_over_a_subset(watching: Any, read: Any) -> None:
    oracle = steps_with(watching, lambda model: clip_grad_norm_([model.matrix, model.scalar], 0.1), 0.1)
    agree(read(), oracle)


def test_a_clip_of_one_tensor(watching: Any, read: Any) -> None:
    oracle = steps_with(watching, lambda model: clip_grad_norm_(model.matrix, 0.1), 0.1)
    agree(read(), oracle)


def test_two_clips_of_disjoint_sets(watching: Any, read: Any) -> None:
    """Each tensor has its own coefficient; the step has none."""

    def clip(model: Zoo) -> None:
        clip_grad_norm_([model.matrix], 0.1)
        clip_grad_norm_([model.transposed, model.scalar], 0.2)

    oracle = steps_with(watching, clip)
    agree(read(), oracle)


def test_a_norm_and_a_value_clip_of_disjoint_sets(watching: Any, read: Any) -> None:
    def clip(model: Zoo) -> torch.Tensor:
        clip_grad_value_([model.transposed, model.scalar], 0.2)
        return clip_grad_norm_([model.matrix], 0.1)

    oracle = steps_with(watching, clip, 0.1)
    agree(read(), oracle)


def test_two_clips_of_the_same_set(watching: Any, read: Any) -> None:
    def clip(model: Zoo) -> None:
        clip_grad_norm_(model.parameters(), 0.5)
        clip_grad_norm_(model.parameters(), 0.1)

    oracle = steps_with(watching, clip)
    agree(read(), oracle, UNPROVABLE | NO_ONE_CLIP)


@pytest.mark.parametrize("every", [1, 3])
def test_a_clip_of_another_order(watching: Any, read: Any, every: int) -> None:
    def clip(model: Zoo) -> torch.Tensor:
        return clip_grad_norm_([p for p in model.parameters() if p.numel()], 0.1, norm_type=math.inf)

    oracle = steps_with(watching, clip, 0.1, every)
    agree(read(), oracle, steps=list(range(1, 4, every)))


def test_a_clip_of_another_model_is_ignored(watching: Any, read: Any) -> None:
    other = torch.nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    oracle = steps_with(watching, lambda model: clip_grad_value_(other.parameters(), 1e-3))
    agree(read(), oracle)


def test_a_clip_after_each_micro_batch(watching: Any, read: Any) -> None:
    model = Zoo()
    optimizer = adamw(model)
    oracle = Oracle(optimizer)
    with watching(model, optimizer):
        for _ in range(3):
            total = 0.0
            for _ in range(2):
                loss = model.loss() / 2
                loss.backward()
                oracle.backward(loss)
                total += float(loss)
                clip_grad_norm_(model.parameters(), 0.1)
            oracle.before_step()
            optimizer.step()
            oracle.after_step(total)
            optimizer.zero_grad()
    agree(read(), oracle, UNPROVABLE | NO_ONE_CLIP)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_that_is_not_finite(watching: Any, read: Any, bad: float, every: int) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    with watching(model, optimizer, every=every):
        for step in range(4):
            model(torch.full((1, 3), bad if step == 1 else 1.0)).sum().backward()
            clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    run = read()
    coefficient, norm = run.series("clip_coefficient").values, run.series("grad_norm").values
    assert coefficient[1] == 0 if math.isinf(bad) else math.isnan(coefficient[1])
    assert not math.isfinite(norm[1])
    assert math.isfinite(norm[0]) and math.isfinite(coefficient[0])
    if every == 1:
        assert run.table("grad_nonfinite").series("weight").values[2] == 6
        assert math.isnan(run.table("grad_norm").series("weight").values[2])


def test_a_norm_that_overflows_is_not_taken_for_the_gradients(watching: Any, read: Any) -> None:
    """torch's float32 norm of 1e20 is infinite; the gradient's is not, and is then missing."""
    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.ones(8))})
    optimizer = torch.optim.AdamW(model.parameters())
    with watching(model, optimizer):
        (1e20 * model["w"]).sum().backward()
        assert math.isinf(clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
    run = read()
    assert not run.has("grad_norm")
    assert run.series("clip_coefficient").values[0] == 0


def test_gradients_and_weights_that_are_not_finite(watching: Any, read: Any) -> None:
    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.ones(8))})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with watching(model, optimizer):
        for step in range(3):
            (model["w"] * torch.tensor([math.inf, math.nan, 0, 1, 2, 3, -4, 5] if step == 1 else [1.0] * 8)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    run = read()
    column = {m: run.table(m).series("w").values[1:].tolist() for m in ("grad_nonfinite", "grad_absmax", "weight_nonfinite")}
    assert column == {"grad_nonfinite": [0, 2, 0], "grad_absmax": [1, 5, 1], "weight_nonfinite": [0, 2, 2]}
    assert run.table("grad_zero_fraction").series("w").values[2] == 1 / 8


def test_two_different_losses(watching: Any, read: Any) -> None:
    model = Net()
    optimizer = adamw(model)
    oracle = Oracle(optimizer)
    with watching(model, optimizer):
        for _ in range(3):
            first, second = model.loss(), 0.01 * model.embed.weight.square().sum()
            for loss in (first, second):
                loss.backward()
                oracle.backward(loss)
            oracle.before_step()
            optimizer.step()
            oracle.after_step(float(first) + float(second))
            optimizer.zero_grad()
    agree(read(), oracle)


def test_unfreezing_and_refreezing(watching: Any, read: Any) -> None:
    model = Zoo()
    optimizer = adamw(model)
    oracle = Oracle(optimizer)
    with watching(model, optimizer):
        for step in range(6):
            model.frozen.requires_grad_(step >= 2)
            model.matrix.requires_grad_(step != 4)
            loss = model.loss() + (model.frozen.sum() if step >= 2 else 0)
            loss.backward()
            oracle.backward(loss)
            oracle.before_step()
            optimizer.step()
            oracle.after_step(float(loss))
            optimizer.zero_grad()
    agree(read(), oracle)


def test_worst_errors(record_property: Any) -> None:
    """Shown with `pytest -rP`: the largest error of each quantity in the tests above."""
    for name, error in sorted(worst.items()):
        print(f"{name:24s} {error:.1e}")
        record_property(name, float(error))
    assert all(error < 1e-4 for error in worst.values())
