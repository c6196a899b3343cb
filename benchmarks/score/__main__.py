"""`python -m benchmarks.score`: judge the labelled runs and write ACCURACY.md, accuracy.svg and accuracy.json."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import stabkit
from benchmarks.score.alarms import alarms_of
from benchmarks.score.bootstrap import Resampled
from benchmarks.score.compare import compare
from benchmarks.score.corpus import RUNS, Case, read_cases
from benchmarks.score.curves import curves_of
from benchmarks.score.picture import picture
from benchmarks.score.report import page
from benchmarks.score.tally import Seen, by_class, by_rule, confidences, stabkit_figures

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = ROOT / "analyzers" / "measured.json"


def look(case: Case) -> Seen:
    """Judge one run."""
    begin = time.perf_counter()
    run = stabkit.load(case.path / "run")
    alarms = alarms_of(stabkit.analyze(run))
    return Seen(case, alarms, curves_of(run, case.id), time.perf_counter() - begin)


def score(seen: tuple[Seen, ...], tune: tuple[Seen, ...], about: dict[str, Any], shifts: int) -> dict[str, Any]:
    """Everything as plain data."""
    draws = Resampled(len(seen))
    healthy = [one for one in seen if one.case.healthy]
    about |= {"runs": len(seen), "healthy": len(healthy), "healthy_steps": sum(one.length for one in healthy),
              "events": sum(len(one.case.events) for one in seen)}  # fmt: skip
    return {
        "schema": 1, "about": about, "stabkit": stabkit_figures(seen, draws, shifts), "classes": by_class(seen, draws),
        "rules": by_rule(seen, draws), "confidence": confidences(seen), "baselines": compare(seen, tune, draws),
    }  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score", description=__doc__)
    parser.add_argument("--part", choices=("tune", "score"), default="score")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the labelled runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shifts", type=int, default=1000)
    parser.add_argument("--write-confidence", action="store_true", help="write analyzers/measured.json")
    options = parser.parse_args()
    cases = read_cases(options.runs, {options.part, "tune"})  # limits of baselines are always set on the tune part
    if not any(case.part == options.part for case in cases):
        sys.exit(f"{options.runs} holds no finished run of part {options.part}; make them with: python -m benchmarks.corpus")
    with ProcessPoolExecutor(options.jobs) as pool:
        everything = tuple(pool.map(look, cases, chunksize=4))
    seen = tuple(one for one in everything if one.case.part == options.part)
    data = score(seen, tuple(one for one in everything if one.case.part == "tune"), _about(options.part), options.shifts)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "accuracy.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (options.out / "accuracy.svg").write_text(picture(data), encoding="utf-8")
    (options.out / "ACCURACY.md").write_text(page(data), encoding="utf-8")
    if options.write_confidence:
        known = {"schema": 1, **{k: data["about"][k] for k in ("part", "date", "commit")}, "rules": data["confidence"]}
        MEASURED.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(options.out / "ACCURACY.md")


def _about(part: str) -> dict[str, Any]:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    versions = f"stabkit {stabkit.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    return {"part": part, "date": date.today().isoformat(), "machine": platform.machine(), "versions": versions,
            "commit": git.stdout.strip() or "unknown", "command": f"python -m benchmarks.score --part {part}"}  # fmt: skip


if __name__ == "__main__":
    main()
