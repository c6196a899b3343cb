"""What the per-tensor sums cost beside the optimizer step they measure.

    python -m benchmarks.statistics_cost [--threads 1 2] [--rounds 60]

The tensors are those of a small GPT (256 wide, 4 layers, 256 characters, 128 positions: 3.3 million parameters). Each
round runs one fused AdamW step and then every way of measuring once, so that all see the same machine and the same
cold cache; printed are medians in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from stabkit.hooks.statistics import AdamStep, TensorState, backend, cpu, measure_after, measure_before

WIDTH, LAYERS, VOCABULARY, POSITIONS = 256, 4, 256, 128


def gpt_shapes() -> list[tuple[int, ...]]:
    """Shapes in the order of the model; the output layer shares the token embedding."""
    w = WIDTH
    norm: list[tuple[int, ...]] = [(w,), (w,)]
    attention: list[tuple[int, ...]] = [(3 * w, w), (3 * w,), (w, w), (w,)]
    feedforward: list[tuple[int, ...]] = [(4 * w, w), (4 * w,), (w, 4 * w), (w,)]
    return [(VOCABULARY, w), (POSITIONS, w), *(norm + attention + norm + feedforward) * LAYERS, *norm]


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def measure(threads: int, rounds: int, shapes: list[tuple[int, ...]], plain: bool) -> dict[str, float]:
    """Medians in milliseconds by what was timed; `plain` includes the reference, which is slow."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes]
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=True)
    times: dict[str, list[float]] = {}
    native = cpu.native

    def note(name: str, function: Callable[[], object]) -> None:
        times.setdefault(name, []).append(timed(function))

    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    optimizer.step()
    for count in range(2, rounds + 2):
        step = AdamStep(1e-3, 0.9, 0.999, 1e-8, 0.01, count, maximize=False, decoupled=True)
        steps = [step] * len(params)
        states = [TensorState(p, p.grad, optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]) for p in params]
        with_snapshots = [
            TensorState(s.param, s.grad, s.exp_avg, s.exp_avg_sq, before=s.param.detach().clone()) for s in states
        ]
        note(f"{backend()}: before", partial(measure_before, states, steps))
        note("fused AdamW step", optimizer.step)
        note(f"{backend()}: after", partial(measure_after, states, steps))
        note(f"{backend()}: after, all with snapshot", partial(measure_after, with_snapshots, steps))
        if plain and count % 10 == 0:
            cpu.native = None
            note("reference: before", partial(measure_before, states, steps))
            note("reference: after", partial(measure_after, states, steps))
            cpu.native = native
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    shapes = gpt_shapes()
    size = sum(torch.Size(shape).numel() for shape in shapes)
    for threads in options.threads:
        print(f"{len(shapes)} tensors, {size:,} parameters, {threads} thread(s)")
        for name, milliseconds in measure(threads, options.rounds, shapes, plain=True).items():
            print(f"  {name:<32} {milliseconds:8.2f} ms")
        print(f"{len(shapes)} tensors of one element: what a call costs by itself")
        for name, milliseconds in measure(threads, options.rounds, [(1,)] * len(shapes), plain=False).items():
            print(f"  {name:<32} {milliseconds:8.3f} ms")


if __name__ == "__main__":
    main()
