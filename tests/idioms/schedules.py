"""Learning rate schedules as they are used rightly: torch's own, and those that people write by hand.

`SCHEDULES` maps a name to a function that is given an optimizer whose groups hold the peak rates, sets the rates of the first
step, and returns a `Schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim import lr_scheduler as lrs

from tests.idioms.loop import STEPS, Loop, bits, loss_of

__all__ = ["SCHEDULES", "Schedule", "run_schedule"]

WARMUP = 10


def nothing(*_: Any) -> None:
    """For a schedule that has nothing to do there."""


@dataclass(frozen=True)
class Schedule:
    """What a loop calls.

    Attributes:
        before: With the number of the step, from 0, before it is made.
        after: With the same number and the step's loss, after it was made.
    """

    before: Callable[[int], None] = nothing
    after: Callable[[int, float], None] = nothing


# ---- factors of the peak rate, of a step from 0 --------------------------------------------------------------------------


def warmup(step: int) -> float:
    return min(1.0, (step + 1) / WARMUP)


def warmup_cosine(step: int) -> float:
    done = max(0, step - WARMUP) / (STEPS - WARMUP)
    return warmup(step) * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def warmup_cosine_from_zero(step: int) -> float:
    """As Transformers does it: the rate of the first step is 0."""
    return step / WARMUP if step < WARMUP else warmup_cosine(step)


def linear(step: int) -> float:
    return warmup(step) * (1 - max(0, step - WARMUP) / (STEPS - WARMUP))


def polynomial(step: int) -> float:
    return warmup(step) * (1 - max(0, step - WARMUP) / (STEPS - WARMUP)) ** 2


def inverse_square_root(step: int) -> float:
    return min((step + 1) ** -0.5, (step + 1) * WARMUP**-1.5) * WARMUP**0.5


def constant_with_cooldown(step: int) -> float:
    return min(warmup(step), (STEPS - step) / 15)


def warmup_stable_decay(step: int) -> float:
    return warmup(step) if step < 45 else 0.1 ** ((step - 44) / 15)


BY_HAND = {
    "warmup_cosine": warmup_cosine,
    "linear": linear,
    "polynomial": polynomial,
    "inverse_square_root": inverse_square_root,
    "constant_with_cooldown": constant_with_cooldown,
    "warmup_stable_decay": warmup_stable_decay,
}


# ---- how people write them down ------------------------------------------------------------------------------------------


class HandWritten:
    """Keeps the peak rates and writes param_group["lr"], as in so many repositories."""

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self.optimizer, self.factor = optimizer, factor
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.steps = 0
        self.write()

    def write(self) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.factor(self.steps)

    def step(self) -> None:
        self.steps += 1
        self.write()


def after_the_step(factor: Callable[[int], float]) -> Callable[[Optimizer], Schedule]:
    def make(optimizer: Optimizer) -> Schedule:
        schedule = HandWritten(optimizer, factor)
        return Schedule(after=lambda step, loss: schedule.step())

    return make


def before_the_step(factor: Callable[[int], float]) -> Callable[[Optimizer], Schedule]:
    def make(optimizer: Optimizer) -> Schedule:
        peaks = [group["lr"] for group in optimizer.param_groups]

        def write(step: int) -> None:
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor(step)

        return Schedule(before=write)

    return make


def by_torch(make: Callable[[Optimizer], Any]) -> Callable[[Optimizer], Schedule]:
    def made(optimizer: Optimizer) -> Schedule:
        scheduler = make(optimizer)
        return Schedule(after=lambda step, loss: scheduler.step())

    return made


def by_epoch(make: Callable[[Optimizer], Any]) -> Callable[[Optimizer], Schedule]:
    """Stepped after every tenth step: an epoch."""

    def made(optimizer: Optimizer) -> Schedule:
        scheduler = make(optimizer)
        return Schedule(after=lambda step, loss: scheduler.step() if step % 10 == 9 else None)

    return made


def on_plateau(optimizer: Optimizer) -> Schedule:
    scheduler = lrs.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
    return Schedule(after=lambda step, loss: scheduler.step(loss) if step % 10 == 9 else None)


def peaks(optimizer: Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def warmup_then_cosine(optimizer: Optimizer) -> lrs.SequentialLR:
    first = lrs.LinearLR(optimizer, 0.1, 1.0, WARMUP)
    then = lrs.CosineAnnealingLR(optimizer, STEPS - WARMUP)
    return lrs.SequentialLR(optimizer, [first, then], [WARMUP])


SCHEDULES: dict[str, Callable[[Optimizer], Schedule]] = {
    "constant": lambda optimizer: Schedule(),
    "LambdaLR": by_torch(lambda o: lrs.LambdaLR(o, warmup_cosine)),
    "LambdaLR from zero": by_torch(lambda o: lrs.LambdaLR(o, warmup_cosine_from_zero)),
    "LambdaLR per group": by_torch(lambda o: lrs.LambdaLR(o, [warmup_cosine, linear])),
    "MultiplicativeLR": by_torch(lambda o: lrs.MultiplicativeLR(o, lambda step: 0.97)),
    "StepLR": by_epoch(lambda o: lrs.StepLR(o, 2)),
    "MultiStepLR": by_epoch(lambda o: lrs.MultiStepLR(o, [3, 5])),
    "ExponentialLR": by_epoch(lambda o: lrs.ExponentialLR(o, 0.7)),
    "CosineAnnealingLR": by_torch(lambda o: lrs.CosineAnnealingLR(o, STEPS)),
    "CosineAnnealingWarmRestarts": by_torch(lambda o: lrs.CosineAnnealingWarmRestarts(o, 20)),
    "OneCycleLR": by_torch(lambda o: lrs.OneCycleLR(o, peaks(o), STEPS)),
    "CyclicLR": by_torch(lambda o: lrs.CyclicLR(o, [p / 10 for p in peaks(o)], peaks(o), 10, cycle_momentum=False)),
    "PolynomialLR": by_torch(lambda o: lrs.PolynomialLR(o, STEPS, 2.0)),
    "LinearLR": by_torch(lambda o: lrs.LinearLR(o, 0.1, 1.0, WARMUP)),
    "ConstantLR": by_torch(lambda o: lrs.ConstantLR(o, 0.1, WARMUP)),
    "SequentialLR": by_torch(warmup_then_cosine),
    "ChainedScheduler": by_torch(
        lambda o: lrs.ChainedScheduler([lrs.LinearLR(o, 0.1, 1.0, WARMUP), lrs.ExponentialLR(o, 0.98)])
    ),
    "ReduceLROnPlateau": on_plateau,
    **{f"{name} by hand, after the step": after_the_step(factor) for name, factor in BY_HAND.items()},
    **{f"{name} by hand, before the step": before_the_step(factor) for name, factor in BY_HAND.items()},
}


def run_schedule(name: str, logdir: Path | None, adopt: bool = False, scheduled_inside: bool = False, **options: Any) -> Loop:
    """Train with a schedule, over two groups of which the second has a tenth of the rate; see `tests.idioms.run_idiom`.

    Args:
        name: A key of `SCHEDULES`.
        logdir: Where to record; None trains unwatched.
        adopt: Leave it to stabkit to find the optimizer.
        scheduled_inside: Make the schedule inside the `with`.
        options: Of AdamW.
    """
    loop = Loop(logdir, adopt, options)
    with loop.settled():
        model = loop.model()
        groups = [
            {"params": [p for p in model.parameters() if p.dim() > 1], "lr": 3e-3},
            {"params": [p for p in model.parameters() if p.dim() < 2], "lr": 3e-4},
        ]
        optimizer = loop.adamw(groups)
        schedule = None if scheduled_inside else SCHEDULES[name](optimizer)
        with loop.watch(model, optimizer, total_steps=STEPS):
            schedule = schedule or SCHEDULES[name](optimizer)
            for step, (x, y) in enumerate(loop.batches()):
                schedule.before(step)
                optimizer.zero_grad()
                loss = loss_of(model, x, y)
                loss.backward()
                norm = clip_grad_norm_(model.parameters(), 1.0)
                loop.note(optimizer, loss, norm=norm)
                optimizer.step()
                schedule.after(step, loss.item())
        loop.result = bits([model, optimizer])
    return loop
