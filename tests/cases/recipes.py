"""How each recorded run was trained, and what the rules must find in it.

Every run is a real training of a small byte-level GPT on the standard library's source, recorded through `stabkit.watch`. A sick
run differs from its healthy twin in one thing. `expect` maps a rule's code to the (earliest, latest) step at which it must fire
and the tensor it must name first (None: any); `silent` lists rules that must not fire at warning or above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import stabkit
from stabkit.demo import GPT, Recipe, batches, standard_library_text

Expectation = tuple[int, int, str | None]


@dataclass(frozen=True)
class Case:
    """A training run.

    Attributes:
        steps: Optimizer steps.
        lr: Rate of a step, from 1, as set before the step.
        start_lr: The rate the optimizer is constructed with.
        late: Set the rate after the step instead of before it.
        clip: Largest gradient norm; None does not clip.
        beta2: Adam's beta2.
        loss_factor: What the loss of a step is multiplied by.
        data: "text", or "noise" for random bytes, of a step.
        decay: Weight decay of the tensor named, where it is not 0.1.
        expect: Findings that must be there.
        clean: Whether nothing of warning or above may be found.
    """

    steps: int = 150
    lr: Callable[[int], float] = lambda step: 1e-3 * min(1.0, step / 20)
    start_lr: float = 1e-3
    late: bool = False
    clip: float | None = 1.0
    beta2: float = 0.999
    loss_factor: Callable[[int], float] = lambda step: 1.0
    data: Callable[[int], str] = lambda step: "text"
    decay: dict[str, float] = field(default_factory=dict)
    expect: dict[str, Expectation] = field(default_factory=dict)
    clean: bool = False


def constant(rate: float) -> Callable[[int], float]:
    """The same rate at every step."""
    return lambda step: rate


def warmed(peak: float, steps: int = 20) -> Callable[[int], float]:
    """Linear warmup, then constant."""
    return lambda step: peak * min(1.0, step / steps)


CASES: dict[str, Case] = {
    "healthy": Case(steps=250, clean=True),
    "healthy_unclipped": Case(clip=None, clean=True),
    "no_warmup": Case(steps=80, lr=constant(3e-2), start_lr=3e-2, expect={"SK101": (2, 10, None)}),
    "no_warmup_low_rate": Case(steps=80, lr=constant(1e-3), clean=True),
    "rate_jump": Case(lr=lambda step: 1e-3 * min(1.0, step / 20) * (100 if step >= 60 else 1), expect={"SK102": (60, 62, None)}),
    "late_scheduler": Case(steps=80, late=True, start_lr=5e-3, lr=warmed(5e-3), expect={"SK103": (3, 3, None)}),
    "zero_first_rate": Case(steps=80, lr=lambda step: 1e-3 * min(1.0, (step - 1) / 20), clean=True, expect={"SK104": (1, 1, None)}),
    "bad_batches": Case(clip=None, data=lambda step: "noise" if step in (120, 121) else "text", expect={"SK201": (120, 121, None)}),
    "diverging": Case(
        steps=200, lr=lambda step: 1e-3 * min(1.0, step / 20) * (500 if step >= 100 else 1), clip=None, expect={"SK102": (100, 102, None)}
    ),
    "gradient_spike": Case(clip=None, loss_factor=lambda step: 200.0 if step == 120 else 1.0, expect={"SK203": (120, 120, None)}),
    "gradient_spike_clipped": Case(loss_factor=lambda step: 200.0 if step == 120 else 1.0, expect={"SK203": (120, 120, None)}),
    "shifted_data": Case(steps=220, clip=None, beta2=0.99, data=lambda step: "noise" if step >= 160 else "text", expect={"SK204": (160, 168, None)}),
    "zero_division": Case(steps=120, loss_factor=lambda step: math.nan if step == 90 else 1.0, expect={"SK301": (90, 90, None)}),
    "growing_weights": Case(
        steps=200, decay={"blocks.1.fc2.weight": -40.0}, expect={"SK302": (100, 130, "blocks.1.fc2.weight")}
    ),
}  # fmt: skip


def run_case(case: Case, logdir: Path) -> stabkit.RunLog:
    """Train, and return what was recorded."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = Recipe(batch=8, seed=0)
    model, data = GPT(width=32, layers=2, heads=2), batches(standard_library_text(), recipe)
    named = dict(model.named_parameters())
    special = {id(named[name]) for name in case.decay}
    groups = [{"params": [p for p in model.parameters() if id(p) not in special]}]
    groups += [{"params": [named[name]], "weight_decay": decay} for name, decay in case.decay.items()]
    optimizer = torch.optim.AdamW(groups, lr=case.start_lr, betas=(0.9, case.beta2), weight_decay=0.1)
    noise = torch.Generator().manual_seed(1)

    def set_rate(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = case.lr(step)

    with stabkit.watch(model, optimizer, logdir, tensorboard=False, total_steps=case.steps):
        for step in range(1, case.steps + 1):
            if not case.late:
                set_rate(step)
            inputs, targets = next(data)
            if case.data(step) == "noise":
                inputs, targets = (torch.randint(256, inputs.shape, generator=noise) for _ in range(2))
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()) * case.loss_factor(step)
            optimizer.zero_grad()
            loss.backward()
            if case.clip:
                nn.utils.clip_grad_norm_(model.parameters(), case.clip)
            optimizer.step()
            if case.late:
                set_rate(step + 1)
    return stabkit.load(logdir)
