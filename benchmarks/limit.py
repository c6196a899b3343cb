"""How far the statistics are from the least they could cost: reading p, g, m and v once at the machine's own bandwidth.

    python benchmarks/limit.py [--threads 1 2] [--parameters 20000000] [--rounds 15]

The least is the fastest that torch sums up one stretch of memory as large as the four together; the optimizer's own step, which
reads all four and writes three, is shown beside it. The statistics are those of a step: the pass before it and the pass after.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from stabkit.hooks.formula import ADAM
from stabkit.hooks.optimizer import states_of
from stabkit.hooks.statistics import AdamStep, backend, cpu, measure_after, measure_before
from stabkit.hooks.statistics.table import Table

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

    def compiled() -> None:
        table = Table(tensors, optimizer.state)
        assert table.look(moments=1), "this torch does not tell C where its tensors lie"
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
        ways["statistics, compiled"] = compiled
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
    options = parser.parse_args()
    for threads in options.threads:
        torch.set_num_threads(threads)
        found = measure(options.parameters, options.rounds)
        print(f"{options.parameters:,} parameters, {threads} thread(s)")
        for name, time_taken in found.items():
            print(f"  {name:<28} {time_taken * 1e3:8.1f} ms   {time_taken / found['reading once']:6.2f} x")


if __name__ == "__main__":
    main()
