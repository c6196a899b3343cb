"""How fast logs are read: a long log of stabkit judged, and an event file beside TensorBoard's own reader and tbparse.

    python -m benchmarks.read [--write] [--steps 100000] [--tensors 200] [--scalars 1000000] [--cache FOLDER]

The log (every column that AdamW has, 3.5 GB) and the event file are generated once and kept in the cache folder. Each part runs
in a process of its own, whose processor time and largest resident memory are told; wall times need a quiet machine.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stabkit.metric import TENSOR_COLUMNS

__all__ = ["main"]

RESULT = Path(__file__).parent / "results" / "READ.md"
PLACE = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
NUMEL = 64
TAGS = 10


def write_log(folder: Path, steps: int, tensors: int, limit: int = 1 << 60) -> None:
    """An ordinary run under AdamW, far too large gradients, updates and loss at its middle.

    Args:
        folder: Where.
        steps: How many.
        tensors: How many.
        limit: Bytes of tensor records from which on old ones are thinned, as of `RunWriter`; by default none are.
    """
    from stabkit.runlog import Group, Layout, RunWriter, StepRecord, TensorInfo

    writer = RunWriter(folder, {"stabkit": "0.1.0"}, limit=limit)
    infos = tuple(TensorInfo(f"blocks.{i // 4}.part{i % 4}.weight", (8, NUMEL // 8)) for i in range(tensors))
    number = writer.layout(0, Layout(infos, optimizer="AdamW", implementation="foreach"))
    writer.begin_attempt(0, 0)
    rng, group = np.random.default_rng(0), Group(lr=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.999, eps=1e-8)
    noise = 1 + 0.05 * rng.standard_normal((4096, tensors))
    for step in range(1, steps + 1):
        factor = 30.0 if step == steps // 2 else 1.0
        a, b, c = (noise[at] for at in rng.integers(0, len(noise), 3))
        table = np.full((tensors, len(TENSOR_COLUMNS)), np.nan)
        columns: dict[str, Any] = {
            "weight_sumsq": NUMEL * 0.01 * b**0.1, "grad_used_sumsq": (a * factor) ** 2, "grad_sumsq": (a * factor) ** 2,
            "grad_absmax": a / 4, "rms_sum": NUMEL * (c * factor) ** 2, "exp_avg_sumsq": 0.1 * b, "exp_avg_sq_sum": NUMEL * c,
            "exp_avg_sq_min": 1e-4 * a, "exp_avg_sq_max": 10 * b, "momentum_dot": 0.02 * (c - 1), "momentum_sumsq": 0.1 * b,
            "update_sumsq": 1e-8 * (c * factor) ** 2, "update_absmax": 1e-3 * a, "weight_update_dot": 1e-6 * (b - 1),
            "grad_nonfinite": 0, "weight_nonfinite": 0, "grad_zeros": 0, "eps_count": 0, "weight_absmax": 0.1,
        }  # fmt: skip
        for name, values in columns.items():
            table[:, PLACE[name]] = values
        loss, norm = (2 + 1 / (1 + step / 100)) * float(a[0]) * factor, float(np.sqrt(np.sum((a * factor) ** 2)))
        writer.write(0, StepRecord(
            step, 0, number, time=1.7e9 + step, applied_steps=step, backward_count=1, loss_reduction=1, loss=loss,
            loss_sum=loss, grad_norm=norm, grad_norm_used=norm, weight_norm=0.8, update_norm=1e-4 * factor, groups=(group,),
            tensors=table,
        ))  # fmt: skip
    writer.close()


def write_events(file: Path, scalars: int) -> None:
    """Scalars of ten tags, as torch's SummaryWriter writes them: an event each."""
    import google_crc32c
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    def masked(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    file.parent.mkdir(parents=True, exist_ok=True)
    tags = ["train/loss", "train/lr", "train/grad_norm", *(f"grad_norm/blocks.{i}.weight" for i in range(TAGS - 3))]
    numbers = np.random.default_rng(0).random(scalars).tolist()
    with open(file, "wb") as out:
        for i in range(-1, scalars):
            event = Event(wall_time=1.7e9 + i // TAGS, file_version="brain.Event:2")
            if i >= 0:
                summary = Summary(value=[Summary.Value(tag=tags[i % TAGS], simple_value=numbers[i])])
                event = Event(wall_time=1.7e9 + i // TAGS, step=i // TAGS, summary=summary)
            record = event.SerializeToString()
            length = struct.pack("<Q", len(record))
            out.write(length + masked(length) + record + masked(record))


def judged(path: str) -> dict[str, Any]:
    """The log judged as `stabkit analyze` does it."""
    import stabkit

    run, loading = timed(lambda: stabkit.load(path))
    diagnosis, judging = timed(lambda: stabkit.analyze(run))
    return {"load": loading, "analyze": judging, "findings": [finding.rule for finding in diagnosis.findings]}


def rule_by_rule(path: str) -> dict[str, Any]:
    """Each rule put before the log alone: what it would cost if nothing were shared."""
    import stabkit
    from stabkit.analyzers import ANALYZERS, judge

    run = stabkit.load(path)
    return {each.rule.code: timed(lambda each=each: judge(each, run))[1] for each in ANALYZERS}


def events_by_stabkit(path: str) -> dict[str, Any]:
    """The event file as a run: read and put in order."""
    import stabkit

    run, seconds = timed(lambda: stabkit.load(path))
    return {"load": seconds, "steps": len(run.steps)}


def events_by_accumulator(path: str) -> dict[str, Any]:
    """TensorBoard's own reader, told to keep every scalar."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(path, size_guidance={"scalars": 0})
    return {"load": timed(reader.Reload)[1], "steps": len(reader.Scalars("train/loss"))}


def events_by_tbparse(path: str) -> dict[str, Any]:
    """tbparse, which makes a table of pandas."""
    from tbparse import SummaryReader  # type: ignore[import-not-found, unused-ignore]

    table, seconds = timed(lambda: SummaryReader(path).scalars)
    return {"load": seconds, "steps": int((table["tag"] == "train/loss").sum())}


PARTS: dict[str, Callable[[str], dict[str, Any]]] = {
    each.__name__: each for each in (judged, rule_by_rule, events_by_stabkit, events_by_accumulator, events_by_tbparse)
}


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it gives, and its wall and processor time in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def in_child(part: str, path: Path) -> dict[str, Any] | None:
    """A part run in a process of its own, with its peak memory; None where it could not run."""
    command = [sys.executable, "-m", "benchmarks.read", "--part", part, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{part}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lines(log: Path, events: Path, steps: int, tensors: int, scalars: int) -> list[str]:
    """The measurements, as the lines of a page."""
    size = sum(file.stat().st_size for file in log.rglob("*") if file.is_file()) / 1e9
    said = [f"## A log of {steps:,} steps x {tensors} tensors ({size:.2f} GB)", "",
            "| | wall s | CPU s | peak MB |", "|---|---|---|---|"]  # fmt: skip
    if found := in_child("judged", log):
        both = {kind: found["load"][kind] + found["analyze"][kind] for kind in ("wall", "cpu")}
        for name, each, memory in (("load: every checksum verified", found["load"], ""),
                                   ("analyze: all rules", found["analyze"], ""), ("both", both, f"{found['peak']:.0f}")):
            said.append(f"| {name} | {each['wall']:.1f} | {each['cpu']:.1f} | {memory} |")
        said += ["", f"{size / both['cpu']:.2f} GB per second of processor time. Found: {', '.join(found['findings'])}."]
    if found := in_child("rule_by_rule", log):
        slow = {code: each for code, each in found.items() if code != "peak" and each["cpu"] >= 0.1}
        said += ["", "Rules alone, each reading for itself (those above 0.1 s of CPU):", "", "| rule | CPU s |", "|---|---|"]
        said += [f"| {code} | {each['cpu']:.2f} |" for code, each in slow.items()]
    said += ["", f"## An event file of {scalars:,} scalars ({events.stat().st_size / 1e6:.0f} MB)", "",
             "| reader | wall s | CPU s | scalars per CPU second | peak MB |", "|---|---|---|---|---|"]  # fmt: skip
    for part in ("events_by_stabkit", "events_by_accumulator", "events_by_tbparse"):
        if found := in_child(part, events):
            each = found["load"]
            rate = f"{scalars / each['cpu']:,.0f}"
            name, peak = part.removeprefix("events_by_"), found["peak"]
            said.append(f"| {name} | {each['wall']:.1f} | {each['cpu']:.1f} | {rate} | {peak:.0f} |")
    return said


def about() -> list[str]:
    """Machine, versions, command and date."""

    def version(name: str) -> str:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            return f"{name} not installed"

    known = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in known if line.startswith("model name")), platform.machine())
    versions = ", ".join(map(version, ("stabkit", "numpy", "scipy", "tensorboard", "tbparse")))
    machine = f"{model}, {platform.system()}, Python {platform.python_version()}"
    return ["# Reading", "", f"{datetime.date.today()}, {machine}, {versions}.",
            "", f"    python -m benchmarks.read {' '.join(sys.argv[1:])}", ""]  # fmt: skip


def main() -> None:
    """Measure, print, and with --write keep what was measured."""
    parser = argparse.ArgumentParser(description="How fast logs are read.")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--scalars", type=int, default=1_000_000)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "stabkit-read")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--part", nargs=2, metavar=("PART", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        found = PARTS[args.part[0]](args.part[1])
        print(json.dumps(found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    log = args.cache / f"log-{args.steps}x{args.tensors}"
    events = args.cache / f"events-{args.scalars}" / "events.out.tfevents.1700000000.host.1.0"
    for path, write in ((log, lambda to: write_log(to, args.steps, args.tensors)),
                        (events.parent, lambda to: write_events(to / events.name, args.scalars))):  # fmt: skip
        if not path.exists():
            print(f"generating {path}", file=sys.stderr)
            unfinished = path.with_name(f"{path.name}.part")
            write(unfinished)
            unfinished.rename(path)
    text = "\n".join([*about(), *lines(log, events, args.steps, args.tensors, args.scalars)]) + "\n"
    print(text)
    if args.write:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
