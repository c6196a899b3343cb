"""What watching costs, beside what else people put around a loop: steps bare and watched, interleaved in one process.

    pip install ormas-monitor trainscope torchmortem gradsnitch    # what is not installed is left out, and told
    python -m benchmarks.overhead --write                          # under 12 minutes on two quiet cores
    python -m benchmarks.overhead --only "300 tiny" --seconds 20   # one case, shorter

One model and optimizer for each case; blocks of steps alternate, a bare one before every two watched ones, and every watcher
is put on anew for its block. A block's ratio is its median step over that of the bare blocks around it; told are the median
over the blocks and the quartiles. `--write` keeps the result in benchmarks/results/OVERHEAD.md.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import numpy as np
import torch

from benchmarks.loops import CASES, WATCHERS, Case, Training, Watcher, installed
from stabkit.hooks.statistics import backend
from stabkit.hooks.statistics.native import finder

RESULTS = Path(__file__).parent / "results" / "OVERHEAD.md"
PAGE = 4096


@dataclass
class Block:
    """What was measured of a block: seconds of each step, bytes of memory it took, bytes it wrote for each step."""

    seconds: list[float]
    memory: int
    written: float

    @property
    def middle(self) -> float:
        """The median step."""
        return statistics.median(self.seconds)


@dataclass
class Tally:
    """What was measured of a watcher in one case: ratios and added seconds of each block, most memory, bytes a step."""

    ratios: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    memory: int = 0
    written: float = 0.0
    trouble: str = ""


def block(training: Training, watcher: Watcher) -> Block:
    """Put the watcher on, take the steps, and take it off."""
    case = training.case
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        resident, written, seconds = _resident(), 0, []
        with watcher.around(training, Path(folder)):
            for number in range(case.warmup + case.steps):
                if number == case.warmup:
                    written = _bytes_in(folder)
                begin = time.perf_counter()
                training.step(watcher)
                seconds.append(time.perf_counter() - begin)
            grown = _resident() - resident
        return Block(seconds[case.warmup :], grown, (_bytes_in(folder) - written) / case.steps)


def measure(case: Case) -> tuple[dict[str, Tally], float]:
    """All watchers in one case, until its time is over; and the median bare step in seconds."""
    training, bare = Training(case), Watcher()
    tallies = {watcher.name: Tally() for watcher in WATCHERS}
    bares: list[float] = []
    begin, rounds = time.perf_counter(), 0
    block(training, bare)
    while not rounds or time.perf_counter() - begin < case.seconds:
        order = [watcher for watcher in WATCHERS if installed(watcher) is not None and not tallies[watcher.name].trouble]
        order = order[:: -1 if rounds % 2 else 1]
        before = block(training, bare)
        for first in range(0, len(order), 2):
            found = [(watcher, _tried(training, watcher, tallies[watcher.name])) for watcher in order[first : first + 2]]
            after = block(training, bare)
            level = (before.middle + after.middle) / 2
            bares.append(level)
            for watcher, one in found:
                if one is not None:
                    _add(tallies[watcher.name], one, level, before)
            before = after
        rounds += 1
    return tallies, statistics.median(bares)


def _tried(training: Training, watcher: Watcher, tally: Tally) -> Block | None:
    try:
        return block(training, watcher)
    except Exception as error:  # of another package: told in the table
        tally.trouble = f"{type(error).__name__}: {error}"[:100]
        return None


def _add(tally: Tally, one: Block, level: float, bare: Block) -> None:
    tally.ratios.append(one.middle / level)
    tally.added.append(one.middle - level)
    tally.memory = max(tally.memory, one.memory - max(bare.memory, 0))
    tally.written = max(tally.written, one.written)


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:  # another system
        return 0


def _bytes_in(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def table(case: Case, tallies: dict[str, Tally], bare: float) -> list[str]:
    """The lines of a case."""
    tensors = list(case.make().parameters())
    size = sum(p.numel() for p in tensors)
    lines = [
        f"## {case.name}: {size:,} parameters, {len(tensors)} tensors, bare step {bare * 1e3:.1f} ms",
        "",
        "| watched by | records | ratio | quartiles | added, ms | memory added, MB | bytes a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for watcher in WATCHERS:
        tally, found = tallies[watcher.name], installed(watcher)
        name = f"{watcher.name} {found}" if found else watcher.name
        if tally.trouble or not tally.ratios:
            lines.append(f"| {name} | {tally.trouble or 'not installed'} | | | | | |")
            continue
        low, middle, high = np.percentile(tally.ratios, [25, 50, 75])
        numbers = f"{middle:.3f} | {low:.3f} to {high:.3f} | {statistics.median(tally.added) * 1e3:.2f}"
        lines.append(f"| {name} | {watcher.records} | {numbers} | {tally.memory / 1e6:.1f} | {tally.written:,.0f} |")
    return [*lines, ""]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="the beginning of a case's name")
    parser.add_argument("--seconds", type=float, help="how long each case may take")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    text = [
        "# What watching costs",
        "",
        f"{date.today()}, {platform.machine()}, {args.threads} threads, torch {torch.__version__}, Python "
        f"{platform.python_version()}, statistics by {backend()}, tensors found by {'c' if finder else 'Python'}. "
        "`python -m benchmarks.overhead --write`",
        "",
        "Forward to optimizer step, gradients clipped, fused AdamW. Every watcher with its defaults, as its own documentation "
        "shows it. The ratio is that of the median step watched to the median step bare, interleaved.",
        "",
    ]
    for case in CASES:
        if case.name.startswith(args.only):
            lines = table(case, *measure(replace(case, seconds=args.seconds or case.seconds)))
            print("\n".join(lines), flush=True)
            text += lines
    if args.write:
        RESULTS.write_text("\n".join(text))


if __name__ == "__main__":
    main()
