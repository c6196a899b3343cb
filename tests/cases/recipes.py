"""How each recorded run was trained, and what the rules must find in it.

Every run is a real training, recorded through `stabkit.watch`: of a small byte-level GPT on the standard library's source, or
of a small MLP on a sine, all of it at every step. A sick run differs from its healthy twin in one thing. `expect` maps a rule's
code to the (earliest, latest) step at which it must fire and the tensor it must name first (None: any).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import stabkit
from stabkit.demo import GPT, Recipe, batches, standard_library_text
from tests.cases.stack import Stack

Expectation = tuple[int, int, str | None]


@dataclass(frozen=True)
class Case:
    """A training run.

    Attributes:
        trains: "text", or "sine" for the MLP: no clipping, no decay, and of the options below only rate and beta2.
        steps: Optimizer steps.
        lr: Rate of a step, from 1, as set before the step.
        start_lr: The rate the optimizer is constructed with.
        late: Set the rate after the step instead of before it.
        clip: Largest gradient norm; None does not clip.
        beta2: Adam's beta2.
        eps: Adam's eps.
        model: Makes the model; a GPT of two blocks where nothing is said.
        loss_factor: What the loss of a step is multiplied by.
        data: "text", or "noise" for random bytes, of a step.
        decay: Weight decay of the tensor named, where it is not 0.1.
        scale: The scale a GradScaler begins with, under float16 autocast; None trains in float32 without one.
        growth_interval: After how many steps without an overflow the scaler doubles its scale.
        forward: Look at the forward passes too.
        root_of_zero: (step, tensor): the loss of that step gets sqrt(0) of the tensor added: finite, its gradient 0 / 0.
        expect: Findings that must be there.
        twin: The healthy run in which the rules of `expect` must be clear.
        clean: Whether nothing of warning or above may be found.
    """

    trains: str = "text"
    steps: int = 150
    lr: Callable[[int], float] = lambda step: 1e-3 * min(1.0, step / 20)
    start_lr: float = 1e-3
    late: bool = False
    clip: float | None = 1.0
    beta2: float = 0.999
    eps: float = 1e-8
    model: Callable[[], nn.Module] = lambda: GPT(width=32, layers=2, heads=2)
    loss_factor: Callable[[int], float] = lambda step: 1.0
    data: Callable[[int], str] = lambda step: "text"
    decay: dict[str, float] = field(default_factory=dict)
    scale: float | None = None
    growth_interval: int = 2000
    forward: bool = False
    root_of_zero: tuple[int, str] = (0, "")
    expect: dict[str, Expectation] = field(default_factory=dict)
    twin: str = "healthy"
    clean: bool = False


def constant(rate: float) -> Callable[[int], float]:
    """The same rate at every step."""
    return lambda step: rate


def warmed(peak: float, steps: int = 20) -> Callable[[int], float]:
    """Linear warmup, then constant."""
    return lambda step: peak * min(1.0, step / steps)


def jump(factor: float, at: int) -> Callable[[int], float]:
    """A warmup to 1e-3, then a rate `factor` times as high from a step on."""
    return lambda step: warmed(1e-3)(step) * (factor if step >= at else 1)


def once(value: float, at: int) -> Callable[[int], float]:
    """A value at one step, 1 at all others."""
    return lambda step: value if step == at else 1.0


def scaled(model: nn.Module, factor: float) -> nn.Module:
    """The model with matrices `factor` times as large as they were made."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return model


CASES: dict[str, Case] = {
    "healthy": Case(steps=250, clean=True),
    "healthy_unclipped": Case(clip=None, clean=True),
    "healthy_short_memory": Case(steps=220, clip=None, beta2=0.99, clean=True),
    "healthy_high_rate": Case(steps=300, lr=warmed(5e-3, 40), beta2=0.95, clean=True, expect={"SK420": (200, 300, None)}),
    "healthy_half": Case(steps=250, scale=2.0**32, growth_interval=40, clean=True),
    "warmed_up": Case(steps=80, lr=warmed(5e-3), start_lr=5e-3, clean=True),
    "no_warmup_low_rate": Case(steps=80, lr=constant(1e-3), clean=True),
    "no_warmup": Case(
        steps=80, lr=constant(3e-2), start_lr=3e-2, twin="no_warmup_low_rate",
        expect={"SK101": (2, 10, "blocks.0.proj.weight")},
    ),
    "late_scheduler": Case(
        steps=80, late=True, start_lr=5e-3, lr=warmed(5e-3), twin="warmed_up", expect={"SK103": (3, 3, None)}
    ),
    "zero_first_rate": Case(
        steps=80, lr=lambda step: 1e-3 * min(1.0, (step - 1) / 20), clean=True, expect={"SK104": (1, 1, None)}
    ),
    "rate_jump": Case(lr=jump(100, 60), expect={"SK102": (60, 62, None), "SK206": (60, 60, None)}),
    "passing_divergence": Case(
        steps=200, lr=jump(500, 100), clip=None, twin="healthy_unclipped",
        expect={"SK102": (100, 102, None), "SK202": (120, 160, None)},
    ),
    "diverging": Case(
        steps=200, lr=jump(5000, 100), clip=None, twin="healthy_unclipped",
        expect={"SK102": (100, 102, None), "SK202": (120, 160, None)},
    ),
    "bad_batches": Case(
        clip=None, data=lambda step: "noise" if step in (120, 121) else "text", twin="healthy_unclipped",
        expect={"SK201": (120, 121, None)},
    ),
    "gradient_spike": Case(
        clip=None, loss_factor=once(200.0, 120), twin="healthy_unclipped", expect={"SK203": (120, 120, None)}
    ),
    "gradient_spike_clipped": Case(loss_factor=once(200.0, 120), expect={"SK203": (120, 120, None)}),
    "spontaneous_spike": Case(
        steps=100, lr=warmed(1e-2, 40), beta2=0.95, expect={"SK203": (30, 33, None), "SK201": (30, 33, None)}
    ),
    "shifted_data": Case(
        steps=220, clip=None, beta2=0.99, data=lambda step: "noise" if step >= 160 else "text", twin="healthy_short_memory",
        expect={"SK204": (160, 168, None), "SK202": (180, 210, None)},
    ),
    "zero_division": Case(steps=120, loss_factor=once(math.nan, 90), expect={"SK301": (90, 90, None)}),
    "root_of_zero": Case(
        steps=120, clip=None, root_of_zero=(90, "blocks.1.fc1.weight"), twin="healthy_unclipped",
        expect={"SK301": (90, 90, "blocks.1.fc1.weight")},
    ),
    "root_of_zero_clipped": Case(
        steps=120, root_of_zero=(90, "blocks.1.fc1.weight"), expect={"SK301": (90, 90, None)}
    ),
    "growing_weights": Case(
        steps=200, decay={"blocks.1.fc2.weight": -40.0}, expect={"SK302": (16, 40, "blocks.1.fc2.weight")}
    ),
    "growing_until_nan": Case(
        steps=160, decay={"blocks.1.fc2.weight": -400.0},
        expect={"SK302": (16, 40, "blocks.1.fc2.weight"), "SK301": (111, 160, None)},
    ),
    "growing_until_overflow": Case(
        steps=240, scale=2.0**16, growth_interval=40, decay={"blocks.1.fc2.weight": -60.0}, twin="healthy_half",
        expect={"SK302": (16, 40, "blocks.1.fc2.weight"), "SK303": (215, 230, None)},
    ),
    "growing_attention": Case(
        steps=100, forward=True, decay={"blocks.0.qkv.weight": -60.0}, twin="healthy_attention",
        expect={"SK302": (16, 40, "blocks.0.qkv.weight"), "SK308": (64, 72, "blocks.0.qkv.weight")},
    ),
    "healthy_attention": Case(steps=100, forward=True, clean=True),
    "falling_scale": Case(
        scale=2.0**16, growth_interval=40, loss_factor=lambda step: 1.15 ** max(0, step - 100), twin="healthy_half",
        expect={"SK303": (105, 125, None)},
    ),
    "underflowing_gradients": Case(
        steps=60, scale=2.0**-12, growth_interval=100_000, twin="healthy_half", expect={"SK305": (20, 40, None)}
    ),
    "long_memory": Case(
        trains="sine", steps=235, lr=warmed(5e-3, 50), twin="memory_that_follows", expect={"SK205": (210, 222, None)}
    ),
    "memory_that_follows": Case(trains="sine", steps=235, lr=warmed(5e-3, 50), beta2=0.9, clean=True),
    "residual_sigmoids": Case(model=lambda: Stack(residual=True), clean=True),
    "sigmoids": Case(
        model=lambda: Stack(residual=False), twin="residual_sigmoids", expect={"SK501": (51, 60, "layers.0.weight")}
    ),
    "rate_too_low": Case(steps=220, lr=constant(1e-6), expect={"SK507": (209, 209, None)}),
    "low_clip_limit": Case(
        steps=310, lr=warmed(5e-3, 40), beta2=0.95, clip=0.02, twin="healthy_high_rate", expect={"SK503": (300, 300, None)}
    ),
    "oversized_initialisation": Case(
        steps=60, model=lambda: scaled(GPT(width=32, layers=2, heads=2), 20), expect={"SK106": (1, 1, "head.weight")}
    ),
    "large_eps": Case(eps=1e-2, expect={"SK504": (10, 20, None)}),
    "schedule_below_zero": Case(
        lr=lambda step: warmed(1e-3)(step) * (1 - max(0, step - 20) / 80), expect={"SK508": (101, 101, None)}
    ),
}  # fmt: skip


def run_case(
    case: Case, logdir: Path, after_step: Callable[[int], None] = lambda step: None, **options: Any
) -> stabkit.RunLog:
    """Train, and return what was recorded; the options are those of `stabkit.watch`."""
    torch.set_num_threads(1)
    run = run_sine if case.trains == "sine" else run_text
    options = {"forward": case.forward, **options}
    return run(case, logdir, after_step, **options)


def run_sine(case: Case, logdir: Path, after_step: Callable[[int], None], **options: Any) -> stabkit.RunLog:
    """An MLP on 256 points of a sine."""
    torch.manual_seed(1)
    x = torch.linspace(-3, 3, 256)[:, None]
    y = torch.sin(3 * x) + 0.3 * torch.sin(9 * x)
    layers = [nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=case.lr(1), betas=(0.9, case.beta2), weight_decay=0)
    with stabkit.watch(model, optimizer, logdir, tensorboard=False, total_steps=case.steps, **options):
        for step in range(1, case.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = case.lr(step)
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
            after_step(step)
    return stabkit.load(logdir)


def run_text(case: Case, logdir: Path, after_step: Callable[[int], None], **options: Any) -> stabkit.RunLog:
    """A byte-level GPT on source code."""
    torch.manual_seed(0)
    recipe = Recipe(batch=8, seed=0)
    model, data = case.model(), batches(standard_library_text(), recipe)
    named = dict(model.named_parameters())
    special = {id(named[name]) for name in case.decay}
    groups = [{"params": [p for p in model.parameters() if id(p) not in special]}]
    groups += [{"params": [named[name]], "weight_decay": decay} for name, decay in case.decay.items()]
    optimizer = torch.optim.AdamW(groups, lr=case.start_lr, betas=(0.9, case.beta2), eps=case.eps, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=case.scale or 1.0, growth_interval=case.growth_interval,
                                  enabled=case.scale is not None)  # fmt: skip
    noise = torch.Generator().manual_seed(1)

    def set_rate(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = case.lr(step)

    with stabkit.watch(model, optimizer, logdir, tensorboard=False, total_steps=case.steps, **options):
        for step in range(1, case.steps + 1):
            if not case.late:
                set_rate(step)
            inputs, targets = next(data)
            if case.data(step) == "noise":
                inputs, targets = (torch.randint(256, inputs.shape, generator=noise) for _ in range(2))
            with torch.autocast("cpu", torch.float16, enabled=case.scale is not None):
                loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()) * case.loss_factor(step)
            if step == case.root_of_zero[0]:
                weight = named[case.root_of_zero[1]]
                loss = loss + torch.sqrt((weight - weight.detach()).square().sum())
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if case.clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), case.clip)
            scaler.step(optimizer)
            scaler.update()
            if case.late:
                set_rate(step + 1)
            after_step(step)
    return stabkit.load(logdir)
