"""How soon a long run is seen: the Stability tab's views and answers, and the report, of 300 tensors over 100,000 steps.

    python -m benchmarks.seeing [--write] [--steps 100000] [--tensors 300] [--cache FOLDER]

Two logs are generated once and kept in the cache folder: as a run leaves it, whose old tensor records were thinned, and with
every record kept. Each view is made in a process of its own, as the tab's is. Then a real TensorBoard is asked, as the tab asks
it: again and again until the view is there. Wall times need a quiet machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Process
from pathlib import Path
from typing import Any

from benchmarks.read import write_log
from stabkit.runlog.thinning import LIMIT

__all__ = ["main"]

RESULT = Path(__file__).parent / "results" / "SEEING.md"
VIEWS = ("timeline", "heatmaps", "verdict", "tensor")
AGAIN = 0.25
"""Seconds after which the question is put again; the tab waits a little longer."""
LOGS = {"as a run leaves it": LIMIT, "every record kept": 1 << 60}


def seen(what: str, path: str) -> int:
    """Make a view of the tab, or the report; the size of what a browser gets, in bytes."""
    if what == "report":
        import stabkit
        from stabkit.report.html import page

        run = stabkit.load(path)
        return len(page(run, stabkit.analyze(run)).encode())
    from stabkit.dashboard.views import view
    from stabkit.report.escape import data

    return len(data(view({"what": what, "path": path, "optimizer": 0, "row": 7})).encode())


def measured(what: str, path: Path) -> dict[str, float]:
    """What a view takes in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.seeing", "--part", what, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def part(what: str, path: str) -> None:
    """In the process: make it and print what it took."""
    began = time.perf_counter()
    size = seen(what, path)
    wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss / 1e3, "size": size}))


@contextmanager
def tensorboard(logs: Path) -> Iterator[str]:
    """A TensorBoard on a free port of this machine; yields where the plugin answers."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        program = str(Path(sys.executable).with_name("tensorboard"))
        command = [program, "--logdir", str(logs), "--port", "0", "--host", "127.0.0.1"]
        with output.open("wb") as out:
            server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            while not (address := re.search(r"http://\S+", output.read_text())):
                if server.poll() is not None:
                    raise SystemExit(f"TensorBoard ended: {output.read_text()}")
                time.sleep(0.1)
            yield address.group() + "data/plugin/stabkit/"
        finally:
            server.terminate()
            server.wait()


def answered(address: str, route: str, **query: Any) -> tuple[Any, list[float]]:
    """Ask until the answer is there: it, and the seconds that each answer took."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url, took = f"{address}{route}?{urllib.parse.urlencode(query)}", []
    while True:
        began = time.perf_counter()
        with opener.open(url) as reply:
            told = json.load(reply)
        took.append(time.perf_counter() - began)
        if told.get("runs") or told.get("data") is not None:
            return told, took
        time.sleep(AGAIN)


def asked(log: Path) -> Iterator[str]:
    """Rows of how a TensorBoard answers about a log: the views all at once, as the tab asks for them, then a tensor."""
    from concurrent.futures import ThreadPoolExecutor

    with tensorboard(log) as address:
        began = time.perf_counter()
        runs, took = answered(address, "runs")
        key = runs["runs"][0]["key"]
        yield f"| list of runs | {time.perf_counter() - began:.1f} | {max(took):.2f} | |"

        def view(what: str) -> tuple[float, float, float]:
            asked, more = time.perf_counter(), {"optimizer": 0, "row": 7} if what == "tensor" else {}
            _, took = answered(address, what, run=key, **more)
            there = time.perf_counter() - asked
            return there, max(took), answered(address, what, run=key, **more)[1][0]

        with ThreadPoolExecutor(3) as together:
            found = dict(zip(VIEWS[:3], together.map(view, VIEWS[:3]), strict=True))
        found["tensor"] = view("tensor")
        for what, (there, slowest, again) in found.items():
            yield f"| {what} | {there:.1f} | {slowest:.2f} | {again:.2f} |"


def tables(name: str, log: Path) -> Iterator[str]:
    """What is told of a log, line by line."""
    size = sum(file.stat().st_size for file in log.rglob("*") if file.is_file())
    yield from ("", f"## {name[0].upper()}{name[1:]}: {size / 1e6:,.0f} MB on disk", "")
    yield from ("| view | wall s | CPU s | peak MB | sent, MB |", "|---|---|---|---|---|")
    for what in (*VIEWS, "report"):
        took = measured(what, log)
        yield f"| {what} | {took['wall']:.1f} | {took['cpu']:.1f} | {took['peak']:.0f} | {took['size'] / 1e6:.2f} |"
    yield from ("", "| asked of TensorBoard | there after, s | slowest answer, s | asked again, s |", "|---|---|---|---|")
    yield from asked(log)


def generated(log: Path, steps: int, tensors: int, limit: int) -> Path:
    """The log, written unless a whole one is there."""
    if not (log / "done").exists():
        shutil.rmtree(log, ignore_errors=True)
        # A child's peak of memory is never below its parent's: this process must stay small.
        apart = Process(target=write_log, args=(log, steps, tensors, limit))
        apart.start()
        apart.join()
        if apart.exitcode:
            raise SystemExit(f"{log} could not be written")
        (log / "done").touch()
    return log


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--tensors", type=int, default=300)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "stabkit-seeing")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--part", nargs=2, metavar=("PART", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        part(*args.part)
        return
    lines = [
        "# Seeing a long run",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}. "
        "`python -m benchmarks.seeing --write`",
        "",
        f"Logs of {args.steps:,} steps x {args.tensors} tensors. First each view in a process of its own (CPU time with",
        "imports), then a real TensorBoard asked as the tab asks it. An answer may be \"not yet\"; the question is put again.",
    ]  # fmt: skip
    for name, limit in LOGS.items():
        kept = "" if limit == LIMIT else "-unthinned"
        log = generated(args.cache / f"log-{args.steps}x{args.tensors}{kept}", args.steps, args.tensors, limit)
        lines += tables(name, log)
        print("\n".join(lines), flush=True)
    if args.write:
        RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
