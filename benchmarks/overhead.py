"""What watching costs: the demo model's training step, bare and watched, interleaved in one process.

    python benchmarks/overhead.py [--pairs 12] [--steps 12] [--threads 2] [--write]

Two equal models train on the same data. Blocks of steps alternate, bare and watched, the order changing from pair to pair; the
watch is left during bare blocks, so that they run without any patch. A pair's ratio is that of its medians; what is reported is
the median over the pairs, with quartiles. `--write` keeps the result in benchmarks/results/OVERHEAD.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
import warnings
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import stabkit
from stabkit.demo import GPT, Recipe, batches, standard_library_text
from stabkit.hooks.statistics import backend

RESULTS = Path(__file__).parent / "results" / "OVERHEAD.md"


class Training:
    """A demo model in training."""

    def __init__(self, implementation: dict[str, bool]) -> None:
        torch.manual_seed(0)
        self.model = GPT()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.1, **implementation)
        self.data = batches(standard_library_text(), Recipe())

    def step(self) -> float:
        """One step; its seconds."""
        inputs, targets = next(self.data)
        begin = time.perf_counter()
        loss = F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return time.perf_counter() - begin


def block(training: Training, steps: int, watched: Any) -> float:
    """Median seconds of a step, the first of the block left out."""
    with watched:
        return statistics.median([training.step() for _ in range(steps + 1)][1:])


def measure(implementation: dict[str, bool], pairs: int, steps: int, **options: Any) -> tuple[list[float], float]:
    """The ratio of each pair, and the median seconds of a bare step."""
    bare, watched = Training(implementation), Training(implementation)
    ratios, bares = [], []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(pairs + 1):
            times = {}
            for name in ("bare", "watched") if pair % 2 else ("watched", "bare"):
                if name == "bare":
                    times[name] = block(bare, steps, nullcontext())
                else:
                    watch = stabkit.watch(watched.model, watched.optimizer, Path(folder) / "run", **options)
                    times[name] = block(watched, steps, watch)
            if pair:  # the first warms up
                ratios.append(times["watched"] / times["bare"])
                bares.append(times["bare"])
    return ratios, statistics.median(bares)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    rows = []
    for name, implementation, options in (
        ("fused AdamW", {"fused": True}, {}),
        ("fused AdamW, no TensorBoard", {"fused": True}, {"tensorboard": False}),
        ("foreach AdamW", {"foreach": True}, {}),
        ("fused AdamW, exact_updates", {"fused": True}, {"exact_updates": True}),
    ):
        ratios, bare = measure(implementation, args.pairs, args.steps, **options)
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(f"| {name} | {bare * 1e3:.1f} | {middle:.4f} | {low:.4f} to {high:.4f} |")
        print(rows[-1], flush=True)
    text = "\n".join([
        "# Overhead of watching every step",
        "",
        f"{date.today()}, {platform.machine()}, {args.threads} threads, torch {torch.__version__}, Python "
        f"{platform.python_version()}, statistics by {backend()}. "
        f"`python benchmarks/overhead.py --pairs {args.pairs} --steps {args.steps} --threads {args.threads} --write`",
        "",
        "Demo model (3.3 million parameters, 1024 tokens a step), forward to optimizer step. Watched over bare, interleaved.",
        "",
        "| loop | bare step, ms | median ratio | quartiles |",
        "|---|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip
    if args.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
