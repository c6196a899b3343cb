"""All that only a GPU can tell, in one command: the tests that need one, how fast the statistics are, what watching costs.

    python -m benchmarks.on_cuda                    # under ten minutes on an H100; needs no network
    python -m benchmarks.on_cuda --only statistics  # or tests, or training

It writes benchmarks/results/CUDA.md. Without a CUDA device it says so and ends with status 2; where a test fails, with 1.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stabkit
from benchmarks.gpt2 import Training
from stabkit.hooks import statistics as sums
from stabkit.hooks.formula import ADAM
from stabkit.hooks.optimizer import states_of
from stabkit.hooks.statistics import AdamStep, device, device_table, reference
from stabkit.hooks.transfer import Batch

DEVICE = "cuda"
ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "CUDA.md"
TESTS = {
    "the Triton kernels against the oracle": ["tests/statistics/kernels.py"],
    "no wait, the same bits, the same numbers": ["tests/hooks/test_cuda.py"],
    "loss scaling: the truth table on the device": ["tests/hooks/test_scaler.py", "-k", "gpu"],
    "CUDA graphs": ["tests/hooks/test_cuda_graphs.py"],
}
WEIGHTS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
COLUMNS = {"before": 3, "after": 16, "step": 19}


def tests() -> tuple[list[str], bool]:
    """Runs the tests that need a device; the lines of a table, and whether all passed."""
    lines, good = ["## Tests", "", "| what | result | seconds |", "|---|---|---|"], True
    for what, chosen in TESTS.items():
        begin = time.perf_counter()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", *chosen]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        told = [line for line in done.stdout.splitlines() if line.strip()]
        if done.returncode:
            print(done.stdout[-6000:], done.stderr[-2000:])
        good = good and not done.returncode
        lines.append(f"| {what} | {told[-1].strip('= ') if told else 'nothing ran'} | {time.perf_counter() - begin:.0f} |")
        print(lines[-1], flush=True)
    return [*lines, ""], good


def milliseconds(function: Callable[[], object], rounds: int = 20) -> tuple[float, float]:
    """Medians of the device's time for a call, and of the host's."""
    near, far = [], []
    for number in range(rounds + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(20_000_000)  # about ten milliseconds, in which the host launches all there is to launch
        begin.record()
        start = time.perf_counter()
        function()
        host = time.perf_counter() - start
        end.record()
        torch.cuda.synchronize()
        if number >= 3:
            near.append(host * 1e3)
            far.append(begin.elapsed_time(end))
    return statistics.median(far), statistics.median(near)


def statistics_of(weights: torch.dtype) -> list[str]:
    """How far the statistics of GPT-2 are from reading p, g, m and v once."""
    training = Training(torch.device(DEVICE), weights, batch=1, length=64)
    training.step()
    training.step()
    training.model.zero_grad(set_to_none=False)
    tensors = [p for group in training.optimizer.param_groups for p in group["params"]]
    for p in tensors:
        assert p.grad is not None
        p.grad.normal_(std=1e-4)
    states = states_of(training.optimizer, tensors, ADAM)
    steps = [AdamStep(1e-4, 0.9, 0.999, 1e-8, 0.1, 2, maximize=False, decoupled=True)] * len(states)
    size = sum(p.numel() for p in tensors)
    bytes_once = 4 * size * tensors[0].element_size()
    stretch = torch.randn(bytes_once // 4, device=DEVICE)

    def measure(mode: str) -> None:
        device.measure(mode, states, steps, range(len(states)), Batch(), np.empty((len(states), COLUMNS[mode])))

    lines = [
        f"### {len(tensors)} tensors, {size:,} parameters of {weights}, as their gradients and moments",
        "",
        "| what | device, ms | of reading once | host, ms |",
        "|---|---|---|---|",
    ]
    once = 0.0
    ways: dict[str, Callable[[], object]] = {
        "reading the four once (`sum`)": stretch.sum,
        "fused AdamW step": training.optimizer.step,
    }
    ways |= {f"{device.backend()}: {mode}": partial(measure, mode) for mode in COLUMNS}
    for name, way in ways.items():
        far, near = milliseconds(way)
        once = once or far
        lines.append(f"| {name} | {far:.3f} | {far / once:.2f} | {near:.2f} |")
        print(lines[-1], flush=True)
    held = sum(t.partials.numel() * 8 + t.chunks.numel() * 4 + t.rows[0].numel() * 8 for t in device_table._tables.values())
    given_up, device._given_up = device._given_up, "to measure the fallback"
    far, near = milliseconds(partial(measure, "after"), rounds=3)
    lines.append(f"| stacked: after | {far:.3f} | {far / once:.2f} | {near:.2f} |")
    device._given_up = given_up
    lines += [
        "",
        f"Reading once moved {bytes_once / once / 1e6:,.0f} GB/s. Memory that the kernels keep: {held / 1e6:.2f} MB.",
        "",
    ]
    worst = against_reference(states, steps)
    sums.release()
    return [*lines, f"Largest difference from the float64 reference: {worst:.1e} of the value.", ""]


def against_reference(states: list[Any], steps: list[AdamStep]) -> float:
    """The largest relative difference of a column of any tensor; of a dot product, relative to the norms."""
    got = sums.measure_after(states, steps)
    want, batch = np.full_like(got, np.nan), Batch()
    for i, state in enumerate(states):
        reference.measure_after(state, steps[i], batch, want[i])
    batch.fetch()
    scale = np.abs(want)
    names = list(sums.AFTER_COLUMNS)
    before = sums.measure_before(states, steps)[:, 0]
    scale[:, names.index("weight_update_dot")] = np.sqrt(before * want[:, names.index("update_sumsq")])
    with np.errstate(all="ignore"):
        return float(np.nanmax(np.abs(got - want) / np.where(scale > 0, scale, np.nan)))


def training(weights: torch.dtype, rounds: int = 5, steps: int = 12) -> list[str]:
    """What watching costs of GPT-2's steps: bare and watched blocks by turns."""
    run = Training(torch.device(DEVICE), weights)
    watched: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
        "bare": lambda folder: nullcontext(),
        "stabkit": lambda folder: stabkit.watch(run.model, run.optimizer, folder, tensorboard=False),
        "stabkit, `every=10`": lambda folder: stabkit.watch(run.model, run.optimizer, folder, tensorboard=False, every=10),
    }
    seconds: dict[str, list[float]] = {name: [] for name in watched}
    memory = dict.fromkeys(watched, 0)
    for name in ["bare", *[name for _ in range(rounds) for name in watched]]:
        gc.collect()
        with tempfile.TemporaryDirectory() as folder, watched[name](Path(folder)):
            for _ in range(5):  # the first steps of a watched block put the optimizer's formula to the proof
                run.step()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            begin = time.perf_counter()
            for _ in range(steps):
                run.step()
            torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - begin) / steps)
            memory[name] = max(memory[name], torch.cuda.max_memory_allocated())
    bare = statistics.median(seconds["bare"][1:])
    lines = [
        f"### Weights of {weights}, 16 x 1024 tokens, fused AdamW, gradients clipped: bare step {bare * 1e3:.1f} ms",
        "",
        "| watched by | ratio | least and most | added device memory, MB |",
        "|---|---|---|---|",
    ]
    for name, found in seconds.items():
        ratios = [one / bare for one in (found[1:] if name == "bare" else found)]
        added = (memory[name] - memory["bare"]) / 1e6
        numbers = f"{statistics.median(ratios):.4f} | {min(ratios):.4f} to {max(ratios):.4f} | {added:.1f}"
        lines.append(f"| {name} | {numbers} |")
        print(lines[-1], flush=True)
    return [*lines, ""]


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["tests", "statistics", "training"])
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was run, nothing was written.", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    has = f"Triton {__import__('triton').__version__}" if find_spec("triton") else "no Triton"
    text = [
        "# On a GPU",
        "",
        f"{date.today()}, {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, torch {torch.__version__}, {has}, Python "
        f"{platform.python_version()}, statistics by {sums.backend('cuda')}. `python -m benchmarks.on_cuda`",
        "",
    ]
    good = True
    if args.only in (None, "tests"):
        lines, good = tests()
        text += lines
    if args.only in (None, "statistics"):
        text += ["## The statistics of one step, beside the least they could cost", ""]
        for weights in WEIGHTS.values():
            text += statistics_of(weights)
            torch.cuda.empty_cache()
    if args.only in (None, "training"):
        text += ["## What watching costs", ""]
        for weights in WEIGHTS.values():
            text += training(weights)
            torch.cuda.empty_cache()
    if why := sums.news():
        text += [f"Triton was given up: {why}", ""]
    RESULTS.write_text("\n".join(text))
    print("\n".join(text))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
