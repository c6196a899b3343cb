"""What is fuzzed: for each format good logs to begin with, and the one question: does it read, and does what follows hold?"""

from __future__ import annotations

import io
import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import stabkit
from benchmarks.fuzz.mutate import Files
from stabkit.dashboard.events import EventFile, ScalarEncoder, encode_event
from stabkit.errors import StabkitError
from stabkit.metric import TENSOR_COLUMNS
from stabkit.report.html import page
from stabkit.report.info import info
from stabkit.report.json import render
from stabkit.report.terminal import open_console
from stabkit.report.text import report
from stabkit.runlog import Group, Layout, RunWriter, StepRecord, TensorInfo
from stabkit.sources.collect import Collected
from stabkit.sources.detect import recognise

__all__ = ["SECONDS", "TARGETS", "TooSlow", "ask", "bounded", "judge", "put", "read"]

SECONDS = 5.0
"""For one input of at most a few hundred kB; the honest ones take a thousandth."""


class TooSlow(Exception):
    """An input took longer than it may."""


@contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Raise in what takes longer than this, of this process's own time, as far as Python is asked in between."""

    def stop(number: int, frame: Any) -> None:
        raise TooSlow(f"longer than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def put(files: Files, folder: Path) -> Path:
    """Write the files; returns the path that is to be read: the only file, or the directory."""
    if len(files) > 1:
        shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / next(iter(files)) if len(files) == 1 else folder


def read(path: Path) -> None:
    """Read a file of another tool into columns, and no more: the reader alone, which takes a quarter of the time."""
    try:
        reader = recognise(path)
        if reader is not None:
            reader(path, Collected())
    except StabkitError as error:
        assert str(error)


def ask(path: Path) -> stabkit.RunLog | None:
    """Read the log and everything in it; None where it is refused as it may be."""
    try:
        run = stabkit.load(path)
        for view in (run.optimizer(index) for index in range(len(run.streams))):
            for metric in (*view.stream.step_values, *view.stream.group_values, *list(view.scalars)[:20]):
                if view.has(metric):
                    view.series(metric)
            for metric in ("grad_norm", "update_ratio", "rms_ratio", "weight_norm"):
                if view.has(metric, "tensor"):
                    view.table(metric)
    except StabkitError as error:
        assert str(error)
        return None
    return run


def judge(run: stabkit.RunLog) -> None:
    """Everything that is made of a log: findings, and what is shown of them in a terminal, as JSON and in a page."""
    try:
        diagnosis = stabkit.analyze(run)
    except StabkitError:
        return
    broken = [outcome.reason for outcome in diagnosis.outcomes if outcome.status == "failed"]
    assert not broken, f"a rule failed: {broken[0]}"
    terminal = io.StringIO()
    console = open_console(terminal)
    report(diagnosis, console, 0, run)
    info([run], 1, console)
    shown = terminal.getvalue()
    bad = [char for char in shown if (ord(char) < 32 and char != "\n") or 0x7F <= ord(char) < 0xA0 or char in "\u202e\u2066"]
    assert not bad, f"the terminal would obey {bad[0]!r}"
    json.loads(render([diagnosis]))
    markup = page(run, diagnosis)
    assert "<img src=x" not in markup and "<script>alert" not in markup, "a name became markup"
    shown.encode(), markup.encode()


def _files(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _rows(steps: int = 10) -> list[dict[str, float]]:
    return [
        {"step": i, "loss": 3 * math.exp(-i / 9) + (9 if i == 8 else 0), "lr": 1e-3, "grad_norm": 1.0 + i % 3, "time": 1e9 + i}
        for i in range(1, steps + 1)
    ]


def _run_log(folder: Path, ranks: int = 1, attempts: int = 1, segment: int = 4096) -> Files:
    names = ("layers.0.weight", "layers.0.bias")
    chance = np.random.default_rng(0)
    for _ in range(attempts):
        for rank in range(ranks):
            writer = RunWriter(folder, {"every": 1, "world_size": ranks}, rank, segment_steps=segment)
            layout = Layout(tuple(TensorInfo(name, (4, 2)) for name in names), 1, "AdamW")
            number = writer.layout(0, layout)
            attempt, first = writer.begin_attempt(0, 0)
            for row in _rows():
                record = StepRecord(first + int(row["step"]) - 1, attempt, number, time=row["time"], groups=(Group(1e-3),))
                record.loss, record.loss_reduction, record.backward_count = row["loss"], 1, 1
                record.tensors = chance.random((len(names), len(TENSOR_COLUMNS)))
                writer.write(0, record)
                writer.scalars(record.step, {"val": row["loss"], "batch": "b17"})
            writer.event("mark", step=3, note="lr halved")
            writer.event("fault", where="step_end", error="ValueError: x", step=3, stopped=False)
            writer.close()
    return {name: data for name, data in _files(folder).items() if "lock" not in name}


def _event_file(folder: Path) -> Files:
    folder.mkdir(parents=True, exist_ok=True)
    file, encoder = EventFile(folder), ScalarEncoder(lambda tag: "")
    for row in _rows():
        file.write(encode_event(row["time"], int(row["step"]), encoder.encode(["loss", "lr"], [row["loss"], row["lr"]])))
    file.close()
    return {"run.tfevents": (folder / Path(file.path).name).read_bytes()}


def _csv(separator: str = ",") -> Files:
    rows = _rows()
    lines = [separator.join(rows[0]), *(separator.join(map(str, row.values())) for row in rows)]
    return {"metrics.csv": "\n".join(lines).encode() + b"\n"}


def _json_lines() -> Files:
    return {"log.jsonl": b"".join(json.dumps({"train": row, "epoch": 1}).encode() + b"\n" for row in _rows())}


def _trainer_state() -> Files:
    history = [{"epoch": row["step"] / 9, "learning_rate": row["lr"], **row} for row in _rows()]
    return {"trainer_state.json": json.dumps({"best_metric": None, "global_step": 10, "log_history": history}).encode()}


def _text() -> list[Files]:
    plain = "".join(f"step {r['step']}: loss {r['loss']:.4f}, lr {r['lr']:.1e}, time 12.3ms\n" for r in _rows())
    braces = "".join(str({"loss": r["loss"], "learning_rate": r["lr"], "epoch": 0.1}) + "\n" for r in _rows())
    megatron = "".join(
        f" iteration {r['step']:8}/ 100 | consumed samples: 8 | learning rate: 1.0E-04 | lm loss: {r['loss']:.6E} | "
        f"loss scale: 1.0 | grad norm: {r['grad_norm']:.3f} | number of skipped iterations: 0 | number of nan iterations: 0 |\n"
        for r in _rows()
    )
    deepspeed = "".join(f"[2024-01-01 00:00:0{r['step'] % 10},000] [INFO] [logging.py:96:log_dist] [Rank 0] step={r['step']}, "
                        f"skipped=0, lr=[0.001], mom=[(0.9, 0.95)]\nloss: {r['loss']}\n" for r in _rows())  # fmt: skip
    return [{"train.log": text.encode()} for text in (plain, braces, megatron, deepspeed)]


TARGETS: dict[str, Callable[[Path], list[Files]]] = {
    "runlog": lambda folder: [
        _run_log(folder / "one"), _run_log(folder / "two", 2), _run_log(folder / "again", attempts=2, segment=6)
    ],
    "events": lambda folder: [_event_file(folder / "events")],
    "csv": lambda folder: [_csv(), _csv(";"), _csv("\t")],
    "jsonl": lambda folder: [_json_lines()],
    "trainer_state": lambda folder: [_trainer_state()],
    "text": lambda folder: _text(),
}
"""By name, what makes the first logs of the corpus; a folder to write in is given."""
