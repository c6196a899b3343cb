"""Trains a run again with the remedy of a finding, to see whether it heals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.corpus.recipe import Disturbance, Recipe
from benchmarks.corpus.recipes import RECIPES
from benchmarks.corpus.store import RUNS, make
from stabkit.finding import REMEDIES

__all__ = ["remedied", "rerun"]


def rerun(name: str, remedy: Mapping[str, float], facts: Mapping[str, Any], runs: Path = RUNS) -> dict[str, Any]:
    """The label of a run trained again as a finding advises, cached beside it.

    Args:
        name: The id of a recipe.
        remedy: The finding's `remedy`.
        facts: Of the finding what a remedy may refer to: `first_step`, `last_step`, `last_good_step`, `tensors`.
        runs: Where all runs lie.
    """
    recipe = remedied(RECIPES[name], remedy, facts)
    told = json.dumps([dict(remedy), recipe.hash], sort_keys=True)
    return make(recipe, runs, f"{name}+{hashlib.sha256(told.encode()).hexdigest()[:12]}")


def remedied(recipe: Recipe, remedy: Mapping[str, float], facts: Mapping[str, Any]) -> Recipe:
    """The recipe with a remedy applied.

    Raises:
        ValueError: the remedy has a name that stabkit does not know.
    """
    unknown = set(remedy) - set(REMEDIES)
    if unknown:
        raise ValueError(f"no such remedy: {', '.join(sorted(unknown))}; there are {', '.join(REMEDIES)}")
    tensors = [str(name) for name in facts.get("tensors") or ()]
    options: dict[str, float] = {k: remedy[k] for k in ("qk_norm", "z_loss") if k in remedy}
    changes: dict[str, Any] = {"options": {**recipe.options, **options}} if options else {}
    changes |= {field: remedy[name] for name, field in PLAIN.items() if name in remedy}
    changes |= {field: bool(remedy[name]) for name, field in SWITCHES.items() if name in remedy}
    if "peak_lr" in remedy:
        changes |= {"peak": remedy["peak_lr"], "lr": min(recipe.lr, remedy["peak_lr"])}
    if "warmup_steps" in remedy:
        changes["warmup"] = round(remedy["warmup_steps"])
    if "init_factor" in remedy:
        names = tensors or [""]
        before = recipe.init_factor
        changes["init_factor"] = {
            **before, **{name: before.get(name, before.get("", 1.0)) * remedy["init_factor"] for name in names}
        }  # fmt: skip
    if "weight_decay" in remedy:
        named = dict.fromkeys(tensors, remedy["weight_decay"])
        changes |= {"decay": {**recipe.decay, **named}} if named else {"weight_decay": remedy["weight_decay"]}
    if remedy.get("master_weights") and recipe.precision == "bfloat16-weights":
        changes["precision"] = "float32"  # bfloat16 with float32 weights, at a tenth of the time on a CPU
    if remedy.get("bfloat16") and recipe.precision == "float16":
        changes["precision"] = "bfloat16"
    return replace(recipe, **changes, disturbances=_disturbances(recipe, remedy, facts))


PLAIN = {"beta2": "beta2", "eps": "eps", "clip_norm": "clip"}
"""Remedies that are a number of the recipe."""
SWITCHES = {"restore_optimizer": "keep_moments", "unscale_first": "unscale"}
"""Remedies that are a switch of it."""


def _disturbances(recipe: Recipe, remedy: Mapping[str, float], facts: Mapping[str, Any]) -> tuple[Disturbance, ...]:
    found = list(recipe.disturbances)
    if "lr_factor" in remedy:
        good = facts.get("last_good_step")
        found.append(Disturbance("rate", 1 if good is None else int(good) + 1, recipe.steps, remedy["lr_factor"]))
    if remedy.get("skip_batches"):
        found.append(Disturbance("skip", int(facts["first_step"]), int(facts["last_step"])))
    return tuple(found)
