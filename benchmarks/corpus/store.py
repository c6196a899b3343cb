"""Where runs and labels lie. A label is written last and in one piece: where there is one, the run is whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import stabkit
from benchmarks.corpus.curves import Array
from benchmarks.corpus.faults import FAULTS, acceptable
from benchmarks.corpus.labels import Curves, Event, events, excused, failed
from benchmarks.corpus.recipe import Recipe
from benchmarks.corpus.recipes import references
from benchmarks.corpus.train import Outcome, train

__all__ = ["RUNS", "label_of", "make", "ready", "relabel"]

RUNS = Path(__file__).parent / "runs"
OUTCOME = "outcome.npz"
NATURAL = {"nonfinite": "nonfinite", "collapse": "scale", "stagnation": "precision"}
"""The class of an event for which no fault is to blame; any other is one of the second moment."""


def ready(recipe: Recipe, runs: Path = RUNS) -> bool:
    """Whether the run is there, trained from this very recipe."""
    label = label_of(recipe.id, runs)
    return label is not None and label["recipe_hash"] == recipe.hash


def label_of(name: str, runs: Path = RUNS) -> dict[str, Any] | None:
    """The label of a run, None where it is not whole."""
    path = runs / name / "label.json"
    label: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return label


def make(recipe: Recipe, runs: Path = RUNS, name: str | None = None, forward: bool = False) -> dict[str, Any]:
    """Train and label, unless it is done already. The references of its setting must be there.

    Args:
        recipe: The run.
        runs: Where all runs lie.
        name: Its folder, if not its id.
        forward: Record the sizes of logits too. A run that is there without them is left as it is.

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
    outcome = train(recipe, folder / "run", forward)
    np.savez_compressed(folder / OUTCOME, losses=outcome.losses, rest=(outcome.final_loss, outcome.seconds))
    return _written(recipe, name, folder, runs, outcome)


def relabel(recipe: Recipe, runs: Path = RUNS, name: str | None = None) -> dict[str, Any]:
    """Label a run again from what it left, after a change of the labeller. Nothing is trained.

    Raises:
        RuntimeError: there is no whole run of this recipe.
    """
    name = name or recipe.id
    done, stored = label_of(name, runs), runs / name / OUTCOME
    if done is None or done["recipe_hash"] != recipe.hash or not stored.exists():
        raise RuntimeError(f"{name} cannot be labelled again: it was not trained yet as its recipe says")
    with np.load(stored) as kept:
        outcome = Outcome(tuple(kept["losses"].tolist()), *kept["rest"].tolist())
    return _written(recipe, name, runs / name, runs, outcome)


def _written(recipe: Recipe, name: str, folder: Path, runs: Path, outcome: Outcome) -> dict[str, Any]:
    label = _label(recipe, name, folder / "run", runs, outcome)
    partial = folder / "label.json.part"
    partial.write_text(json.dumps(label, indent=1) + "\n")
    os.replace(partial, folder / "label.json")
    return label


def _label(recipe: Recipe, name: str, run: Path, runs: Path, outcome: Outcome) -> dict[str, Any]:
    twin_final, deviation = _healthy(recipe, runs)
    measure = None if recipe.data_changes else twin_final
    curves = _curves(recipe, run, runs, outcome, measure, deviation)
    fault = FAULTS[recipe.fault] if recipe.fault else None
    seen = 1 if recipe.keep_moments or not recipe.resume else recipe.resume + 1
    found = [_told(event, recipe) for event in events(curves) if event.end >= seen]
    lost = failed(outcome.final_loss, measure, deviation)
    well = not found and not lost
    return {
        "schema": 1,
        "id": name,
        "recipe_hash": recipe.hash,
        "family": recipe.family,
        "base": recipe.base,
        "fault": recipe.fault,
        "class": fault.label if fault else None,
        "part": recipe.part,
        "seed": recipe.seed,
        "steps": recipe.steps,
        "first_step": seen,
        "healthy": well,
        "hard_negative": well and recipe.fault is not None,
        "injection": recipe.injection,
        "events": found,
        "excused_steps": [list(stretch) for stretch in excused(curves)],
        "excused_rules": list(fault.facts) if fault else [],
        "twin": recipe.twin,
        "final_loss": outcome.final_loss,
        "twin_loss": twin_final,
        "deviation": deviation,
        "failed": lost,
        "seconds": outcome.seconds,
        "remedies_apply": bool(found and fault and fault.remedies),
    }


def _told(event: Event, recipe: Recipe) -> dict[str, Any]:
    """An event with its class: the fault's, unless it came before the fault did."""
    fault = FAULTS[recipe.fault] if recipe.fault else None
    caused = fault is not None and fault.label is not None and event.end >= (recipe.injection or 1)
    label = fault.label if fault and fault.label and caused else NATURAL.get(event.kind, "stale")
    stages = event.stages or (event,)
    return {
        "onset": event.onset,
        "end": event.end,
        "kind": event.kind,
        "class": label,
        "rules": sorted({code for stage in stages for code in acceptable(stage.kind, label)}),
        "tensors": list((fault.tensors or {}).get(recipe.family, ())) if fault and caused else [],
        "stages": [[stage.onset, stage.end, stage.kind] for stage in stages],
    }


def _healthy(recipe: Recipe, runs: Path) -> tuple[float | None, float]:
    """The twin's held-out loss, and the deviation of its log over the seeds."""
    if recipe.twin is None:
        return None, 0.0
    reference = {r.id for r in references(recipe.base, recipe.part)}
    losses = {name: label["final_loss"] for name in {recipe.twin, *reference} if (label := label_of(name, runs))}
    if recipe.twin not in losses:
        raise RuntimeError(f"{recipe.id} is compared with {recipe.twin}, which was not trained yet: make that first")
    seeds = [np.log(losses[name]) for name in sorted(losses) if name in reference]
    return losses[recipe.twin], float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0


def _curves(recipe: Recipe, run: Path, runs: Path, outcome: Outcome, twin_final: float | None, deviation: float) -> Curves:
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
        with np.load(runs / recipe.twin / OUTCOME) as kept:
            twin = kept["losses"]
    return Curves(
        loss=np.array(outcome.losses), twin=twin, skipped=series("skipped", 0.0), scale=series("loss_scale", np.nan),
        broken=broken, unchanged=unchanged, final=outcome.final_loss, twin_final=twin_final, deviation=deviation,
        data_changes=recipe.data_changes, restless=recipe.restless,
    )  # fmt: skip
