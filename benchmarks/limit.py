"""How far the statistics are from the least they could cost: reading p, g, m and v once at the machine's own bandwidth.

    python -m benchmarks.limit [--threads 1 2] [--parameters 20000000] [--rounds 15] [--write]

The least is the fastest that torch sums up one stretch of memory as large as the four together; the optimizer's own step, which
reads all four and writes three, is shown beside it. The statistics are all those of a step: compiled, in one look after it, or,
as where a scaler may yet skip it, in one before and one after; and torch's own operations, the fallback.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stabkit.hooks.formula import ADAM
from stabkit.hooks.optimizer import states_of
from stabkit.hooks.statistics import AdamStep, backend, cpu, measure_after, measure_before
from stabkit.hooks.statistics.table import Table

RESULT = Path(__file__).parent / "results" / "LIMIT.md"
_LARGEST = 1024 * 1024


def seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def measure(parameters: int, rounds: int) -> dict[str, float]:
    """Median seconds of each, interleaved."""
    sizes = [_LARGEST] * (parameters // _LARGEST) + [1024] * 40
    tensors = [torch.nn.Parameter(torch.randn(size) * 0.02) for size in sizes]
    optimizer = torch.optim.AdamW(tensors, lr=1e-3, fused=True)
    for p in tensors:
        p.grad = torch.randn_like(p) * 1e-3
    optimizer.step()
    stretch = torch.randn(4 * sum(sizes))
    steps = [AdamStep(1e-3, 0.9, 0.999, 1e-8, 0.01, 2, maximize=False, decoupled=True)] * len(tensors)

    def once() -> None:
        table = Table(tensors, optimizer.state)
        assert table.look(moments=3), "this torch does not tell C where its tensors lie"
        table.step(steps)

    def twice() -> None:
        table = Table(tensors, optimizer.state)
        table.look(moments=1)
        table.before(steps)
        table.look(moments=3)
        table.after(steps)

    def fallback() -> None:
        states = states_of(optimizer, tensors, ADAM)
        native, cpu.native = cpu.native, None
        try:
            measure_before(states, steps)
            measure_after(states, steps)
        finally:
            cpu.native = native

    ways: dict[str, Callable[[], object]] = {"reading once": stretch.sum, "fused AdamW step": optimizer.step}
    if backend() == "c":
        ways["statistics, compiled, one look"] = once
        ways["statistics, compiled, two looks"] = twice
    ways["statistics, torch fallback"] = fallback
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            if "fallback" not in name or number < 3:
                times[name].append(seconds(way))
    return {name: min(found) if name == "reading once" else statistics.median(found) for name, found in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--parameters", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    lines = [
        "# The statistics beside one read of what they are of",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"Python {platform.python_version()}. `python -m benchmarks.limit{' --write' if options.write else ''}`",
        "",
        f"{options.parameters:,} parameters; medians of {options.rounds} rounds, interleaved (of the fallback 3).",
        "",
    ]
    for threads in options.threads:
        torch.set_num_threads(threads)
        found = measure(options.parameters, options.rounds)
        lines += [f"| {threads} thread{'s' * (threads > 1)} | ms | times one read |", "|---|---|---|"]
        lines += [f"| {name} | {took * 1e3:.1f} | {took / found['reading once']:.2f} |" for name, took in found.items()]
        lines.append("")
    print("\n".join(lines))
    if options.write:
        RESULT.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
