"""Random draws of a step that depend on the seed and the step alone, so that a run and its twin meet the same batches."""

from __future__ import annotations

import torch

from benchmarks.corpus.recipe import Recipe

__all__ = ["draws", "with_random_labels"]

SUBSTITUTES = 1_000_000
"""The number from which the batches lie that stand in for skipped ones."""
HELD_OUT = 2_000_000


def draws(recipe: Recipe, step: int) -> torch.Generator:
    """The generator of a step's batch; of another one where the step's batch is left out."""
    number = step + SUBSTITUTES if recipe.now("skip", step) else step
    return torch.Generator().manual_seed(recipe.seed * 10_000_019 + number)


def with_random_labels(targets: torch.Tensor, classes: int, recipe: Recipe, step: int) -> torch.Tensor:
    """Targets with the share of random ones that the recipe asks for at a step."""
    noise = recipe.now("labels", step)
    if noise is None:
        return targets
    generator = torch.Generator().manual_seed(recipe.seed * 10_000_019 + step + HELD_OUT)
    chosen = torch.rand(targets.shape, generator=generator) < noise.size
    return torch.where(chosen, torch.randint(classes, targets.shape, generator=generator), targets)
