"""What has been fuzzed so far, over all runs: one entry a seed in benchmarks/results/fuzz.json, and the page made of them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["RESULTS", "Entry", "Target", "enter", "entries", "page"]

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Target:
    """What one format was given.

    Attributes:
        inputs: How many.
        refused: How many of those that were read into a run ended in a StabkitError.
        kept: How many reached something new.
        slowest: Seconds of this process's own time that the slowest took.
        broken: How often each place broke, by "Error at file:line".
    """

    inputs: int
    refused: int
    kept: int
    slowest: float
    broken: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One run of the fuzzer.

    Attributes:
        seed: Another seed is other inputs; the same one again replaces its entry.
        date: When it was last written.
        python: Version.
        inputs: Of all targets.
        seconds: By the clock.
        lines: Lines of stabkit reached.
        targets: By name; empty where they were not kept.
    """

    seed: int
    date: str
    python: str
    inputs: int
    seconds: float
    lines: int
    targets: dict[str, Target]


def entries(folder: Path = RESULTS) -> list[Entry]:
    """Every run so far, by seed."""
    path = folder / "fuzz.json"
    known = json.loads(path.read_text()) if path.exists() else []
    return [Entry(**one | {"targets": {name: Target(**of) for name, of in one["targets"].items()}}) for one in known]


def enter(entry: Entry, folder: Path = RESULTS) -> None:
    """Put a run down, in place of one of the same seed. Whoever reads meanwhile finds the old page or the new one, whole."""
    all_of_them = sorted([*(one for one in entries(folder) if one.seed != entry.seed), entry], key=lambda one: one.seed)
    _replace(folder / "fuzz.json", json.dumps([asdict(one) for one in all_of_them], indent=1) + "\n")
    _replace(folder / "FUZZ.md", page(all_of_them))


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, path)


def page(runs: list[Entry]) -> str:
    """The page: each run, the targets of all together, and what broke."""
    rows = "\n".join(
        f"| {run.seed} | {run.date} | {run.python} | {run.inputs:,} | {_count(run.seconds)} | {_count(run.lines)} | "
        f"{sum(sum(of.broken.values()) for of in run.targets.values()) if run.targets else 'see below'} |"
        for run in runs
    )
    names = list(dict.fromkeys(name for run in runs for name in run.targets))
    targets = "\n".join(_target(name, [run.targets[name] for run in runs if name in run.targets]) for name in names)
    broken = "\n".join(
        f"- seed {run.seed}, {name}: {place} ({times} times)"
        for run in runs for name, of in run.targets.items() for place, times in of.broken.items()
    )  # fmt: skip
    return f"""# Fuzzing the readers

{sum(run.inputs for run in runs):,} inputs, each within 5 s of its process's time and 2 GiB:
`python -m benchmarks.fuzz --seed N --write`.

| seed | on | Python | inputs | seconds | lines of stabkit reached | inputs that broke something |
|---|---|---|---|---|---|---|
{rows}

| target | inputs | refused with a StabkitError | kept in the corpus | slowest, s |
|---|---|---|---|---|
{targets}

What seed 0 gave to each target was not kept; the nine places it broke, all mended, are in
[docs/reliability.md](../../docs/reliability.md). Seed 1 was timed by the clock, on a machine with ten
times more to do than it has cores: seven inputs took longer than 5 s by it, and tried again each took less than 0.1 s of its
process's time, which is what is bounded and shown since.

What breaks is mended before the next run and kept in tests/breaking/corpus/crashes.jsonl, which is read by every test run.

{broken or "Nothing else broke."}
"""


def _count(number: float) -> str:
    return f"{number:,.0f}" if number else "not kept"


def _target(name: str, parts: list[Target]) -> str:
    inputs, refused, kept = (sum(getattr(of, what) for of in parts) for what in ("inputs", "refused", "kept"))
    return f"| {name} | {inputs:,} | {refused:,} | {kept} | {max(of.slowest for of in parts):.2f} |"
