"""A long run and many short ones: memory, descriptors and threads stay flat, torch is left as it was, the log is exact.

    python -m benchmarks.soak [--steps 100000] [--runs 500] [--write]

Real optimizer steps of a small model, with clipping, a scheduler and TensorBoard's file. Memory is read every thousand steps;
the slope is that of a line through the last three quarters. An unwatched training of the same steps is measured beside it:
what grows there is not ours. `--write` keeps the result in benchmarks/results/SOAK.md.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import stabkit
from benchmarks.heading import heading
from benchmarks.tables import descriptors, memory, tables, threads

RESULTS = Path(__file__).parent / "results" / "SOAK.md"
_EVERY = 1000


def train(logdir: Path | None, steps: int, look: Callable[[int], None] = lambda done: None) -> None:
    """Train a small model for so many steps, watched where there is a directory."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    data, targets = torch.randn(16, 8), torch.randn(16, 1)
    with stabkit.watch(model, optimizer, logdir) if logdir else nullcontext():
        for done in range(1, steps + 1):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(data), targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            look(done)


def long_run(logdir: Path | None, steps: int) -> dict[str, Any]:
    """One run of so many steps; what it did to the process."""
    seen: list[tuple[int, int, int, int]] = []

    def look(done: int) -> None:
        if done % _EVERY == 0:
            seen.append((done, memory(), descriptors(), threads()))

    begin = time.perf_counter()
    train(logdir, steps, look)
    at, held, files, running = np.array(seen, dtype=np.float64).T
    late = len(at) // 4
    return {
        "seconds": time.perf_counter() - begin,
        "slope": float(np.polyfit(at[late:] / 1000, held[late:], 1)[0]),
        "grown": int(held[-1] - held[late]),
        "files": (int(files[late:].min()), int(files[late:].max())),
        "threads": (int(running.min()), int(running.max())),
    }


def check_log(logdir: Path, steps: int) -> str:
    """What is wrong with the log of a run of so many steps; empty where it is exact."""
    run = stabkit.load(logdir)
    if run.steps.tolist() != list(range(1, steps + 1)):
        return f"{len(run.steps)} steps, {run.steps[:3]} to {run.steps[-3:]}"
    if run.stream.tensor_steps.tolist() != list(range(steps + 1)):
        return f"{len(run.stream.tensor_steps)} records of tensors"
    faults = [event for event in run.events if event["event"] in ("fault", "lost", "unseen")]
    return str(faults or run.notes or "")


def short_runs(folder: Path, runs: int, steps: int = 20) -> dict[str, Any]:
    """Many runs, each in a directory of its own; what is left of them."""
    held, wrong = [], ""
    for number in range(runs):
        train(folder / str(number), steps)
        wrong = wrong or check_log(folder / str(number), steps)
        held.append(memory())
    late = runs // 4
    return {
        "slope": float(np.polyfit(np.arange(late, runs), held[late:], 1)[0]),
        "wrong": wrong,
        "files": descriptors(),
        "threads": threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder / "warm", 2000)  # lazy imports and first allocations are not a leak
        check_log(folder / "warm", 2000)
        gc.collect()
        before, files, running = tables(), descriptors(), threads()
        bare = long_run(None, options.steps)
        watched = long_run(folder / "long", options.steps)
        wrong = check_log(folder / "long", options.steps)
        short = short_runs(folder / "short", options.runs)
        gc.collect()
        after = tables()
        changed = sorted(place for place in before.keys() | after.keys() if before.get(place) != after.get(place))
        left = [place for place in changed if place in before]
        places = f": {left[:9]}" if left else ""
        text = f"""# Soak

{heading("benchmarks.soak")}

| | {options.steps:,} steps, bare | {options.steps:,} steps, watched | {options.runs:,} runs of 20 steps |
|---|---|---|---|
| memory, bytes per thousand steps | {bare["slope"]:,.0f} | {watched["slope"]:,.0f} | {short["slope"] / 20 * 1000:,.0f} |
| memory, last to first quarter, kB | {bare["grown"] / 1e3:,.0f} | {watched["grown"] / 1e3:,.0f} | |
| file descriptors, least and most | {bare["files"]} | {watched["files"]} | {files} before, {short["files"]} after |
| threads of Python, least and most | {bare["threads"]} | {watched["threads"]} | {running} before, {short["threads"]} after |
| seconds | {bare["seconds"]:.0f} | {watched["seconds"]:.0f} | |
| log | | {wrong or "exact: every step once, in order"} | {short["wrong"] or "exact, each"} |

Of {len(before):,} functions, classes, cells and tables of torch {len(left)} are not as they were{places}.
"""
    print(text)
    if options.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
