"""The loop: take a log of the corpus, change it, read it; keep it where it reached something new, or broke something."""

from __future__ import annotations

import argparse
import platform
import random
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

from benchmarks.fuzz import corpus
from benchmarks.fuzz.coverage import Lines
from benchmarks.fuzz.ledger import Entry, Target, enter
from benchmarks.fuzz.mutate import Files, mutated
from benchmarks.fuzz.targets import TARGETS, ask, bounded, judge, put, read
from stabkit.errors import StabkitError

_MEMORY = 2 * 2**30
"""Bytes of address space that one input may add."""
_JUDGED, _ASKED = 2000, 20
"""One log in so many is judged and drawn too; one in so many of other tools is made into a run and asked for its series. So is
each that reached something new; the rest is read into columns."""
_OWN_SHARE = 20
"""One input in so many is a log of stabkit: those take ten times as long."""
_TOLD = 30.0
"""Seconds between two entries in the ledger: a run that is killed loses no more."""


class Fuzzer:
    """One target.

    Attributes:
        crashes: How often each place broke, by "Error at file:line".
        inputs: How many were tried.
        slowest: Seconds of this process's own time that the slowest took.
        refused: How many were refused with a StabkitError.
    """

    def __init__(self, name: str, folder: Path, lines: Lines, seed: int) -> None:
        self.name, self._folder, self._lines = name, folder, lines
        self._chance = random.Random(f"{name} {seed}")
        self.crashes: Counter[str] = Counter()
        self.inputs = self.refused = 0
        self.slowest = 0.0
        self.kept: list[Files] = []
        self._pool = TARGETS[name](folder / "seeds")
        for log in [*self._pool, *corpus.read(name)]:
            self.feed(log)
        self._pool += self.kept

    def go(self) -> None:
        """Try one more input."""
        log = mutated(self._chance.choice(self._pool), self._pool, self._chance)
        if self.feed(log) and sum(map(len, log.values())) < 60_000:
            self._pool.append(log)

    def feed(self, log: Files) -> bool:
        """Read a log; whether it reached anything new."""
        self.inputs += 1
        path = put(log, self._folder / "log")
        begin = time.process_time()
        new = False
        try:
            with self._lines.watching() as news, bounded():
                if self.name != "runlog" and self.inputs % _ASKED:
                    read(path)
                if self.name == "runlog" or news() or self.inputs % _ASKED == 0:
                    run = ask(path)
                    self.refused += run is None
                    if run is not None and (news() or self.inputs % _JUDGED == 0):
                        judge(run)
            new = news()
        except Exception as error:
            self._note(error, log)
        self.slowest = max(self.slowest, time.process_time() - begin)
        if new:
            self.kept.append(log)
        return new

    def _note(self, error: Exception, log: Files) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/stabkit/" in f.filename or "/analyzers/" in f.filename] or list(frames)
        place = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}: {str(error)[:90]}"
        known = any(place.split(": ")[0] == other.split(": ")[0] for other in self.crashes)
        self.crashes[place] += 1
        if not known and not isinstance(error, StabkitError):
            print(f"CRASH {self.name}: {place}", flush=True)
            corpus.append("crashes", log)


def main() -> None:
    options = _options()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.RLIM_INFINITY))
    for number in (signal.SIGINT, signal.SIGTERM):  # either ends it, and what was done until then counts
        signal.signal(number, signal.default_int_handler)
    lines, began = Lines(), time.perf_counter()
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        fuzzers = [Fuzzer(name, Path(folder) / name, lines, options.seed) for name in options.targets]

        def tell() -> None:
            entry = _entry(fuzzers, lines, time.perf_counter() - began, options.seed)
            broken = sum(len(of.broken) for of in entry.targets.values())
            print(f"{entry.inputs:,} inputs in {entry.seconds:,} s, {entry.lines:,} lines, {broken} places broke", flush=True)
            if options.write:
                enter(entry)
                for fuzzer in fuzzers:
                    corpus.write(fuzzer.name, [log for log in fuzzer.kept if sum(map(len, log.values())) < 20_000])

        try:
            _run(fuzzers, options.inputs, tell)
        except KeyboardInterrupt:
            pass
        tell()


def _run(fuzzers: list[Fuzzer], inputs: int, tell: Callable[[], None]) -> None:
    told, number = time.perf_counter(), 0
    while sum(f.inputs for f in fuzzers) < inputs:
        number += 1
        for fuzzer in fuzzers:
            if fuzzer.name != "runlog" or number % (_OWN_SHARE // len(fuzzers)) == 0 or len(fuzzers) == 1:
                fuzzer.go()
        if time.perf_counter() - told > _TOLD:
            tell()
            told = time.perf_counter()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description="Fuzz everything that reads a log.")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--write", action="store_true", help="keep the corpus and the figures")
    return parser.parse_args()


def _entry(fuzzers: list[Fuzzer], lines: Lines, seconds: float, seed: int) -> Entry:
    targets = {f.name: Target(f.inputs, f.refused, len(f.kept), round(f.slowest, 2), dict(f.crashes)) for f in fuzzers}
    inputs = sum(f.inputs for f in fuzzers)
    return Entry(seed, str(date.today()), platform.python_version(), inputs, round(seconds), len(lines.reached), targets)


if __name__ == "__main__":
    main()
