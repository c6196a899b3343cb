"""Where runs and labels lie. A label is written last and in one piece: where there is one, the run is whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import stabkit
from benchmarks.corpus.faults import FAULTS, acceptable
from benchmarks.corpus.labels import Array, Curves, events, failed
from benchmarks.corpus.recipe import Recipe
from benchmarks.corpus.recipes import references
from benchmarks.corpus.train import Outcome, train

__all__ = ["RUNS", "label_of", "make", "ready"]

RUNS = Path(__file__).parent / "runs"
LEAST_DEVIATION = 0.01
"""Of log held-out loss: three seeds can agree by chance."""
NATURAL = {"nonfinite": "nonfinite", "collapse": "scale", "stagnation": "precision"}
"""The class of an event for which no fault is to blame; any other is one of the second moment."""


def ready(recipe: Recipe, runs: Path) -> bool:
    """Whether the run is there, trained from this very recipe."""
    label = label_of(recipe.id, runs)
    return label is not None and label["recipe_hash"] == recipe.hash


def label_of(name: str, runs: Path = RUNS) -> dict[str, Any] | None:
    """The label of a run, None where it is not whole."""
    path = runs / name / "label.json"
    label: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return label


def make(recipe: Recipe, runs: Path = RUNS, name: str | None = None) -> dict[str, Any]:
    """Train and label, unless it is done already. The references of its setting must be there.

    Args:
        recipe: The run.
        runs: Where all runs lie.
        name: Its folder, if not its id.

    Returns:
        The label.
    """
    name = name or recipe.id
    done = label_of(name, runs)
    if done is not None and done["recipe_hash"] == recipe.hash:
        return done
    folder = runs / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    outcome = train(recipe, folder / "run")
    label = _label(recipe, name, folder / "run", runs, outcome)
    partial = folder / "label.json.part"
    partial.write_text(json.dumps(label, indent=1) + "\n")
    os.replace(partial, folder / "label.json")
    return label


def _label(recipe: Recipe, name: str, run: Path, runs: Path, outcome: Outcome) -> dict[str, Any]:
    twin_final, deviation = _healthy(recipe, runs)
    curves = _curves(recipe, run, runs, outcome, twin_final, deviation)
    fault = FAULTS[recipe.fault] if recipe.fault else None
    meant = fault.label if fault else None
    found = [
        {
            "onset": event.onset,
            "end": event.end,
            "kind": event.kind,
            "class": (label := meant or NATURAL.get(event.kind, "stale")),
            "rules": acceptable(event.kind, label),
            "tensors": list((fault.tensors or {}).get(recipe.family, ())) if fault else [],
        }
        for event in events(curves)
    ]
    return {
        "schema": 1,
        "id": name,
        "recipe_hash": recipe.hash,
        "family": recipe.family,
        "base": recipe.base,
        "fault": recipe.fault,
        "class": meant,
        "part": recipe.part,
        "seed": recipe.seed,
        "steps": recipe.steps,
        "healthy": not found,
        "hard_negative": not found and recipe.fault is not None,
        "injection": recipe.injection,
        "events": found,
        "twin": recipe.twin,
        "final_loss": outcome.final_loss,
        "twin_loss": twin_final,
        "deviation": deviation,
        "failed": failed(outcome.final_loss, twin_final, deviation),
        "seconds": outcome.seconds,
        "remedies_apply": bool(found and fault and fault.remedies),
    }


def _healthy(recipe: Recipe, runs: Path) -> tuple[float | None, float]:
    """The twin's held-out loss, and the deviation of its log over the seeds."""
    if recipe.twin is None:
        return None, LEAST_DEVIATION
    reference = {r.id for r in references(recipe.base, recipe.part)}
    losses = {name: label["final_loss"] for name in {recipe.twin, *reference} if (label := label_of(name, runs))}
    if recipe.twin not in losses:
        raise RuntimeError(f"{recipe.id} is compared with {recipe.twin}, which was not trained yet: make that first")
    seeds = [np.log(losses[name]) for name in losses if name in reference]
    return losses[recipe.twin], max(LEAST_DEVIATION, float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0)


def _curves(
    recipe: Recipe, run: Path, runs: Path, outcome: Outcome, twin_final: float | None, deviation: float
) -> Curves:
    log = stabkit.load(run)
    steps = recipe.steps

    def series(name: str, missing: float) -> Array:
        values = np.full(steps, missing)
        if log.has(name):
            known = log.series(name)
            values[known.steps - 1] = known.values
        return values

    broken, unchanged = np.zeros(steps), np.full(steps, np.nan)
    if log.has("weight_nonfinite", "tensor"):
        table = log.table("weight_nonfinite")
        broken[table.steps - 1] = np.nan_to_num(table.values).sum(axis=1)
    if log.has("unchanged_fraction", "tensor"):
        table = log.table("unchanged_fraction")
        known = np.isfinite(table.values).any(axis=1)
        unchanged[table.steps[known] - 1] = np.nanmedian(table.values[known], axis=1)
    twin = None
    if recipe.twin:
        compared = stabkit.load(runs / recipe.twin / "run").series("loss")
        twin = np.full(steps, np.nan)
        twin[compared.steps - 1] = compared.values
    return Curves(
        loss=np.array(outcome.losses), twin=twin, skipped=series("skipped", 0.0), scale=series("loss_scale", np.nan),
        broken=broken, unchanged=unchanged, final=outcome.final_loss, twin_final=twin_final, deviation=deviation,
        data_changes=recipe.data_changes,
    )  # fmt: skip
