"""Random draws of a step that depend on the seed and the step alone, so that a run and its twin meet the same batches."""

from __future__ import annotations

import torch

from benchmarks.corpus.recipe import Recipe

__all__ = ["draws", "random_share", "with_random_labels"]

SUBSTITUTES = 1_000_000
"""The number from which the batches lie that stand in for skipped ones."""
HELD_OUT = 2_000_000
LUCK = 3_000_000


def draws(recipe: Recipe, step: int) -> torch.Generator:
    """The generator of a step's batch; of another one where the step's batch is left out."""
    number = step + SUBSTITUTES if recipe.now("skip", step) else step
    return torch.Generator().manual_seed(recipe.seed * 10_000_019 + number)


def random_share(recipe: Recipe, step: int) -> float:
    """The share of a step's targets that are drawn at random."""
    if noise := recipe.now("labels", step):
        return noise.size
    luck = torch.rand((), generator=torch.Generator().manual_seed(recipe.seed * 10_000_019 + step + LUCK)).item()
    if heavy := recipe.now("heavy", step):
        return heavy.size * luck**4
    if mixed := recipe.now("mixed", step):
        return mixed.size if luck < 1 / 3 else 0.0
    return 0.0


def with_random_labels(targets: torch.Tensor, classes: int, recipe: Recipe, step: int) -> torch.Tensor:
    """Targets with the share of random ones that the recipe asks for at a step."""
    share = random_share(recipe, step)
    if share == 0:
        return targets
    generator = torch.Generator().manual_seed(recipe.seed * 10_000_019 + step + HELD_OUT)
    chosen = torch.rand(targets.shape, generator=generator) < share
    return torch.where(chosen, torch.randint(classes, targets.shape, generator=generator), targets)
