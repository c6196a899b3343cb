"""How soon a long run is seen: the views of the Stability tab and the report, of 300 tensors over 100,000 steps.

    python -m benchmarks.seeing [--write] [--steps 100000] [--tensors 300] [--cache FOLDER]

The log is generated once, with every record that a long run would have thinned away, and kept in the cache folder. Each view is
made in a process of its own, as the tab's is; TensorBoard itself answers at once, with "not yet" until the view is there. Wall
times need a quiet machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.read import write_log

__all__ = ["main"]

RESULT = Path(__file__).parent / "results" / "SEEING.md"
VIEWS = ("timeline", "heatmaps", "verdict", "tensor")


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
    log = args.cache / f"log-{args.steps}x{args.tensors}"
    if not (log / "done").exists():
        write_log(log, args.steps, args.tensors)
        (log / "done").touch()
    size = sum(file.stat().st_size for file in log.rglob("*") if file.is_file())
    rows = []
    for what in (*VIEWS, "report"):
        took = measured(what, log)
        rows.append(f"| {what} | {took['wall']:.1f} | {took['cpu']:.1f} | {took['peak']:.0f} | {took['size'] / 1e6:.2f} |")
        print(rows[-1], flush=True)
    text = "\n".join([
        "# Seeing a long run",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}. "
        "`python -m benchmarks.seeing --write`",
        "",
        f"A log of {args.steps:,} steps x {args.tensors} tensors, {size / 1e6:.0f} MB on disk. CPU time with imports.",
        "",
        "| view | wall s | CPU s | peak MB | sent, MB |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip
    if args.write:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
