"""`python -m benchmarks.score`: judge the labelled runs and write ACCURACY.md, accuracy.svg and accuracy.json."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # remedies are trained in processes of their own

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import stabkit
from benchmarks.score.alarms import alarms_of, judged
from benchmarks.score.bootstrap import Resampled
from benchmarks.score.compare import compare
from benchmarks.score.corpus import RUNS, Case, read_cases
from benchmarks.score.curves import curves_of
from benchmarks.score.picture import picture
from benchmarks.score.published import published
from benchmarks.score.remedy import chosen, told, train_again
from benchmarks.score.report import page
from benchmarks.score.tally import Seen, by_class, by_family, by_rule, confidences, stabkit_figures

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = ROOT / "analyzers" / "measured.json"


def look(case: Case) -> Seen:
    """Judge one run."""
    begin = time.perf_counter()
    run = stabkit.load(case.path / "run")
    alarms = judged(alarms_of(stabkit.analyze(run)), case)
    return Seen(case, alarms, curves_of(run, case.id, case.of_the_data), time.perf_counter() - begin)


def score(seen: tuple[Seen, ...], tune: tuple[Seen, ...], about: dict[str, Any], shifts: int) -> dict[str, Any]:
    """Everything that follows from the runs alone, as plain data."""
    draws = Resampled(len(seen))
    healthy = [one for one in seen if one.case.healthy]
    about |= {"runs": len(seen), "healthy": len(healthy), "healthy_steps": sum(one.length for one in healthy),
              "events": sum(len(one.case.events) for one in seen)}  # fmt: skip
    return {
        "schema": 1, "about": about, "stabkit": stabkit_figures(seen, draws, shifts), "classes": by_class(seen, draws),
        "families": by_family(seen), "rules": by_rule(seen, draws), "confidence": confidences(seen),
        "baselines": compare(seen, tune, draws),
    }  # fmt: skip


def heal(seen: tuple[Seen, ...], runs: Path, jobs: int, most: int) -> dict[str, Any]:
    """What became of the sick runs trained again; all of them where `most` is 0."""
    trials = chosen(seen, most or None)
    return told(trials, train_again(trials, runs, jobs), sum(not one.case.healthy for one in seen))


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score", description=__doc__)
    parser.add_argument("--part", choices=("tune", "score"), default="score")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the labelled runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shifts", type=int, default=1000)
    parser.add_argument("--published", action=argparse.BooleanOptionalAction, default=True, help="ask published tools too")
    parser.add_argument("--remedies", type=int, nargs="?", const=0, metavar="N",
                        help="train sick runs again with their remedies; at most N, in turn from every class")  # fmt: skip
    parser.add_argument("--write-confidence", type=Path, nargs="?", const=MEASURED, metavar="FILE",
                        help="write what was measured of each rule; to analyzers/measured.json by default")  # fmt: skip
    options = parser.parse_args(arguments)
    cases = read_cases(options.runs, {options.part, "tune"})  # limits of baselines are always set on the tune part
    if not any(case.part == options.part for case in cases):
        sys.exit(f"{options.runs} holds no finished run of part {options.part}; make them with: python -m benchmarks.corpus")
    with ProcessPoolExecutor(options.jobs) as pool:
        everything = tuple(pool.map(look, cases, chunksize=4))
    seen = tuple(one for one in everything if one.case.part == options.part)
    data = score(seen, tuple(one for one in everything if one.case.part == "tune"), _about(options.part), options.shifts)
    if options.published:
        data["published"] = published(seen, Resampled(len(seen)), options.jobs)
    if options.remedies is not None:
        data["remedies"] = heal(seen, options.runs, options.jobs, options.remedies)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "accuracy.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (options.out / "accuracy.svg").write_text(picture(data), encoding="utf-8")
    (options.out / "ACCURACY.md").write_text(page(data), encoding="utf-8")
    if options.write_confidence:
        known = {"schema": 1, **{k: data["about"][k] for k in ("part", "date", "commit")}, "rules": data["confidence"]}
        options.write_confidence.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(options.out / "ACCURACY.md")


def _about(part: str) -> dict[str, Any]:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    versions = f"stabkit {stabkit.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    return {"part": part, "date": date.today().isoformat(), "machine": platform.machine(), "versions": versions,
            "commit": git.stdout.strip() or "unknown", "command": f"python -m benchmarks.score --part {part}"}  # fmt: skip


if __name__ == "__main__":
    main()
