"""`python -m benchmarks.corpus`: trains and labels what is not there yet.

    python -m benchmarks.corpus [--part tune|score|all] [--jobs 2] [--only GLOB] [--forward] [--list | --relabel]

It may be stopped at any time and started again: a run is done when it has a label, and a changed recipe is trained again.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the workers

import argparse
import fnmatch
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.corpus.producer import produce, sole_producer
from benchmarks.corpus.recipe import Recipe
from benchmarks.corpus.recipes import RECIPES, references
from benchmarks.corpus.store import RUNS, label_of, ready, relabel


def chosen(part: str, only: str) -> list[Recipe]:
    """The recipes asked for, and the references that they are compared with."""
    wanted = {n: r for n, r in RECIPES.items() if part in ("all", r.part) and fnmatch.fnmatch(n, only)}
    needed = {ref.id for r in wanted.values() if r.twin for ref in references(r.base, r.part)}
    needed |= {r.twin for r in wanted.values() if r.twin}
    return [recipe for name, recipe in RECIPES.items() if name in wanted or name in needed]


def table(recipes: Iterable[Recipe], runs: Path = RUNS) -> None:
    """What is there: of the scoring part, that it is there."""
    for recipe in recipes:
        label = label_of(recipe.id, runs)
        if label is None:
            print(f"{recipe.id:34} -")
        elif recipe.part == "score":
            print(f"{recipe.id:34} done")
        else:
            told = "  ".join(f"{e['kind']}@{e['onset']}-{e['end']} ({e['class']})" for e in label["events"]) or "healthy"
            against = f" / {label['twin_loss']:.4g}" if label["twin_loss"] is not None else ""
            print(f"{recipe.id:34} {label['seconds']:5.1f} s  {label['final_loss']:.4g}{against:12}  {told}")


def main() -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=("tune", "score", "all"), default="all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="*", help="a pattern of ids, such as 'text-*'")
    parser.add_argument("--forward", action="store_true", help="record the sizes of logits too, in the runs that are made")
    parser.add_argument("--list", action="store_true", help="show what is there and make nothing")
    parser.add_argument("--relabel", action="store_true", help="label what is there again, and train nothing")
    options = parser.parse_args()
    recipes = chosen(options.part, options.only)
    if options.list:
        table(recipes)
        return 0
    try:
        with sole_producer():
            if options.relabel:
                for recipe in recipes:
                    if ready(recipe):
                        relabel(recipe)
                return 0
            return int(produce(recipes, options.jobs, forward=options.forward) > 0)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
