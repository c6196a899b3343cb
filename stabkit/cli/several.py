"""Judges several runs side by side: a process for each core, results in the order asked for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from stabkit.analyzers import Analyzer
from stabkit.cli.exits import told
from stabkit.errors import UsageError
from stabkit.finding import Diagnosis
from stabkit.report.json import Unreadable
from stabkit.runlog import RunLog, Stream

__all__ = ["Judged", "Task", "judge_all"]

LARGE = 64 * 2**20
"""Bytes of logs from which on further processes are begun: they take half a second to start."""


@dataclass(frozen=True)
class Judged:
    """What came of a path.

    Attributes:
        run: The diagnosis, or why there is none.
        log: The run; None where it could not be read. From another process without what was recorded of tensors.
        code: The exit code for a path that could not be read, else 0.
    """

    run: Diagnosis | Unreadable
    log: RunLog | None
    code: int


@dataclass(frozen=True)
class Task:
    """How runs are to be read and judged."""

    attempt: int | None
    rules: tuple[Analyzer, ...]
    columns: Mapping[str, str]

    def judge(self, path: str) -> Judged:
        """A diagnosis and its run, or why there is none: one path must not stop the others."""
        from stabkit.analyzers import analyze
        from stabkit.sources import load

        try:
            run = load(path, self.attempt, dict(self.columns))
            return Judged(analyze(run, self.rules), run, 0)
        except Exception as error:
            return Judged(Unreadable(path, told(error, path)), None, 2 if isinstance(error, UsageError) else 3)


def judge_all(paths: Sequence[str], task: Task, processes: int | None = None) -> Iterator[Judged]:
    """What comes of each path, in their order, each as soon as it and those before it are there.

    Args:
        paths: The runs.
        task: How they are read and judged.
        processes: How many at once; by default as many as there are cores, and one for a single run or for small ones.
    """
    processes = processes or (min(len(paths), os.cpu_count() or 1) if len(paths) > 1 and _size(paths) > LARGE else 1)
    if processes == 1:
        yield from map(task.judge, paths)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    pool = ProcessPoolExecutor(processes, context, initializer=_quietly)
    try:
        with _deaf():
            waiting = [pool.submit(partial(_judge_apart, task), path) for path in paths]
        for path, answer in zip(paths, waiting, strict=True):
            yield _result(answer.result, path)
    finally:  # also where the reader has seen enough: nobody waits for a judgement that nobody reads
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()


def _result(answer: Callable[[], Judged], path: str) -> Judged:
    try:
        return answer()
    except BrokenProcessPool:
        what = "the process that judged it, or one beside it, was ended from outside; there may not be memory for several"
        return Judged(Unreadable(path, f"{path}: {what}. Judge it alone."), None, 3)


@contextmanager
def _deaf() -> Iterator[None]:
    """Begin processes that do not hear Ctrl-C, not even while they import: their parent answers it, once it is out of here."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _quietly() -> None:
    """Begin a process whose parent answers Ctrl-C, and which has no remarks of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")


def _judge_apart(task: Task, path: str) -> Judged:
    judged = task.judge(path)
    return judged if judged.log is None else replace(judged, log=_sent(judged.log))


def _sent(run: RunLog) -> RunLog:
    """What another process needs of a run to report on it: all that is not about single tensors, in memory."""
    return RunLog(
        path=run.path, source=run.source, streams=tuple(map(_without_columns, run.streams)), index=run.index,
        attempt=run.attempt, attempts=run.attempts, facts=run.facts, events=run.events, scalars=run.scalars, notes=run.notes,
        previous=_none,
    )  # fmt: skip


def _without_columns(stream: Stream) -> Stream:
    return replace(stream, step_values=dict(stream.step_values), columns={})


def _none() -> None:
    """There is no attempt before."""


def _size(paths: Sequence[str]) -> int:
    """Bytes of all files at these paths, as far as they are here."""
    size = 0
    for path in map(Path, paths):
        files = path.rglob("*") if path.is_dir() else [path]
        size += sum(file.stat().st_size for file in files if file.is_file())
        if size > LARGE:
            break
    return size
