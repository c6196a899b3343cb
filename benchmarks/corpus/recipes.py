"""The list of runs: healthy settings, and what is done to them in each part.

The parts share no seed, and no rate. One family, `recurrent`, is in the scoring part only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.corpus.faults import FAULTS
from benchmarks.corpus.recipe import Recipe

__all__ = ["BASES", "PARTS", "RECIPES", "SEEDS", "references"]

PARTS = ("tune", "score")
SEEDS = {"tune": (0, 1, 2), "score": (20, 21, 22)}
"""Seeds 10 to 12 scored the rules of commit 11deaf1. Rules changed since then are scored on runs that were not there yet."""
RATES = {"tune": 1.0, "score": 0.73}
"""What the base rates are multiplied by."""

BASES: dict[str, Recipe] = {
    "text": Recipe(base="text", family="text", steps=300, lr=3e-3, warmup=40, schedule="cosine", weight_decay=0.1, clip=1.0),
    "cnn": Recipe(base="cnn", family="vision", steps=300, lr=3e-3, warmup=30, schedule="cosine", options={"cnn": 1}),
    "vit": Recipe(base="vit", family="vision", steps=300, lr=2e-3, warmup=40, schedule="cosine", clip=1.0,
                  options={"batch": 16}),
    "full": Recipe(base="full", family="regression", steps=2500, lr=5e-3, warmup=20, beta2=0.9),
    "mini": Recipe(base="mini", family="regression", steps=600, lr=3e-3, warmup=30, schedule="cosine", options={"batch": 32}),
    "lstm": Recipe(base="lstm", family="recurrent", steps=300, lr=6e-3, warmup=30, clip=1.0),
}  # fmt: skip
"""The healthy settings."""


@dataclass(frozen=True)
class Plan:
    """A fault, with the sizes and the number of seeds it gets in each part."""

    base: str
    fault: str
    tune: tuple[float, ...]
    score: tuple[float, ...]
    seeds: int = 1


PLANS: tuple[Plan, ...] = (
    # At the start
    Plan("text", "nowarmup", (1, 10, 30), (2, 14, 35), 2),
    Plan("vit", "nowarmup", (15,), (20,), 1),
    Plan("cnn", "nowarmup", (1, 30), (2, 45), 1),
    Plan("mini", "nowarmup", (1, 50), (2, 70), 1),
    Plan("text", "init", (2, 20), (3, 30)),
    Plan("mini", "init", (5,), (6,)),
    # Second moments that are out of date
    Plan("text", "shift", (1,), (1,)),
    Plan("cnn", "shift", (2,), (3,)),
    Plan("mini", "shift", (10,), (20,)),
    Plan("mini", "rescaled", (10, 100), (20, 60), 2),
    Plan("cnn", "rescaled", (30,), (60,), 2),
    Plan("text", "rare", (1,), (1,), 2),
    Plan("mini", "rare", (20,), (15,)),
    Plan("full", "beta2", (0.999, 0.997), (0.9985, 0.998), 3),
    # Bad batches
    Plan("text", "gradient", (200, 2000), (500, 5000)),
    Plan("cnn", "gradient", (500,), (1000,)),
    Plan("vit", "gradient", (500,), (1000,)),
    Plan("mini", "gradient", (50, 1000), (200, 2000)),
    Plan("text", "gradient-clipped", (200,), (500,)),
    Plan("text", "noise", (1,), (1,), 2),
    Plan("cnn", "noise", (1,), (1,), 2),
    Plan("mini", "noise", (30,), (50,), 2),
    Plan("cnn", "noise-clipped", (1,), (1,)),
    # Growth
    Plan("text", "grow", (40, 400), (60, 300)),
    Plan("text", "attention", (30, 100), (50, 80), 2),
    Plan("cnn", "grow-fp16", (30,), (40,)),
    Plan("mini", "grow-fp16", (30,), (40,)),
    Plan("cnn", "overflow", (20, 40), (16, 30), 2),
    Plan("text", "overflow", (20,), (25,), 2),
    # Numbers
    Plan("cnn", "nan-batches", (1,), (1,), 2),
    Plan("mini", "nan-batches", (1,), (1,), 2),
    Plan("mini", "underflow", (1e-4, 1e-6), (3e-5, 3e-6)),
    Plan("cnn", "underflow", (1e-3,), (3e-4,)),
    Plan("text", "bf16", (0.02,), (0.03,)),
    Plan("mini", "bf16", (0.02, 1), (0.03, 0.7), 2),
    Plan("cnn", "bf16", (0.02,), (0.03,), 2),
    Plan("text", "eps", (1e-2, 1e-4, 1e-15), (3e-2, 3e-5, 1e-14)),
    Plan("mini", "eps", (1.0,), (3.0, 0.5), 2),
    Plan("cnn", "eps", (0.3,), (0.5,), 2),
    Plan("mini", "zero-division", (1,), (1,), 3),
    Plan("cnn", "zero-division", (1,), (1,), 2),
    Plan("text", "zero-division", (1,), (1,)),
    # Rates and wiring
    Plan("text", "jump", (3, 30), (4, 50), 2),
    Plan("cnn", "jump", (30,), (50,)),
    Plan("vit", "jump", (20,), (30,)),
    Plan("mini", "jump", (10, 50), (15, 70)),
    Plan("text", "pulse", (30,), (50,), 2),
    Plan("full", "moments", (1,), (1,), 3),
    Plan("text", "moments", (1, 8), (1.5, 9)),
    Plan("cnn", "moments", (8,), (10,), 2),
    Plan("mini", "moments", (5, 12), (8, 15), 2),
    Plan("mini", "unscale", (65536,), (32768,)),
    Plan("cnn", "unscale", (65536,), (32768,)),
    # Suspicious, and harmless if all goes well
    Plan("text", "rate", (3,), (4,)),
    Plan("cnn", "rate", (4,), (5,)),
    Plan("vit", "rate", (2,), (1.6,)),
    Plan("mini", "rate", (4,), (5,)),
    Plan("text", "restarts", (3,), (4,)),
    Plan("cnn", "restarts", (4,), (5,)),
    Plan("cnn", "labels", (0.5,), (0.4,)),
    Plan("text", "labels", (0.5,), (0.4,)),
    Plan("mini", "labels", (0.5,), (0.4,)),
    Plan("cnn", "epochs", (47,), (50,)),
    Plan("text", "heavy", (1.0,), (0.9,)),
    Plan("mini", "heavy", (1.0,), (0.9,)),
    Plan("cnn", "mixed", (0.6,), (0.7,)),
    Plan("text", "mixed", (0.5,), (0.6,)),
    Plan("mini", "plateau", (0.5,), (0.7,), 2),
    Plan("text", "hard", (1,), (1,)),
    Plan("cnn", "hard", (0.3,), (0.4,)),
    Plan("mini", "fp16", (65536,), (32768,)),
    Plan("cnn", "fp16", (2.0**20,), (2.0**22,)),
    Plan("text", "decay", (1,), (0.7,)),
    Plan("text", "resumed", (1,), (1,)),
    Plan("cnn", "resumed", (1,), (1,)),
    Plan("mini", "memory", (0.99,), (0.98,)),
    # The family that no threshold has seen
    Plan("lstm", "nowarmup", (), (20, 60)),
    Plan("lstm", "init", (), (15,)),
    Plan("lstm", "shift", (), (1,)),
    Plan("lstm", "rare", (), (1,)),
    Plan("lstm", "gradient", (), (1000,)),
    Plan("lstm", "noise", (), (1,), 2),
    Plan("lstm", "grow", (), (200,)),
    Plan("lstm", "bf16", (), (0.03,)),
    Plan("lstm", "eps", (), (1e-2,)),
    Plan("lstm", "jump", (), (4, 60)),
    Plan("lstm", "moments", (), (8,)),
    Plan("lstm", "rate", (), (2,)),
    Plan("lstm", "labels", (), (0.4,)),
    Plan("lstm", "heavy", (), (0.9,)),
    Plan("lstm", "restarts", (), (3,)),
    Plan("lstm", "hard", (), (1,)),
)


def references(base: str, part: str) -> list[Recipe]:
    """The healthy runs of a setting, one a seed: the twins, and the measure of what seeds alone do."""
    if base == "lstm" and part == "tune":
        return []
    recipe = BASES[base]
    lr = recipe.lr * RATES[part]
    return [replace(recipe, id=f"{base}-s{seed}", part=part, seed=seed, lr=lr) for seed in SEEDS[part]]


def _calm(sick: Recipe, healthy: Recipe) -> Recipe:
    """A run on the same changing data by an optimizer that takes it well: what the data alone do to a loss."""
    calmer = replace(healthy, disturbances=sick.disturbances, beta2=min(0.95, healthy.beta2), clip=1.0)
    return calmer if sick.restless else replace(calmer, lr=healthy.lr * 0.7)


def _planned(plan: Plan, part: str) -> Iterator[Recipe]:
    fault = FAULTS[plan.fault]
    for size in getattr(plan, part):
        for healthy in references(plan.base, part)[: plan.seeds]:
            name = f"{plan.base}-{plan.fault}-{size:g}-s{healthy.seed}"
            sick, twin = fault.apply(healthy, size), None
            if fault.against:
                twin = fault.against(sick)
                if twin == replace(healthy, resume=twin.resume):
                    twin = None  # a resume with its moments changes no bit
            elif sick.data_changes:
                twin = _calm(sick, healthy)
            if twin:
                yield replace(twin, id=f"{name}-calm")
            yield replace(sick, id=name, fault=plan.fault, size=size, twin=f"{name}-calm" if twin else healthy.id)


def _all() -> Iterator[Recipe]:
    for part in PARTS:
        for base in BASES:
            yield from references(base, part)
        for plan in PLANS:
            yield from _planned(plan, part)


RECIPES: dict[str, Recipe] = {recipe.id: recipe for recipe in _all()}
"""Every run by its id, references before what is compared with them."""
