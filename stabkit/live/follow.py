"""Looks at a log over and over, and tells each finding once.

Every look is the whole analysis of the log so far, by the same code that judges it afterwards. Rules are causal (see
`stabkit.analyzers.base`), so what is told live is what `stabkit analyze` says of the whole log. A look takes longer the longer
the log is; the pauses between them grow with it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from stabkit.analyzers import ANALYZERS, Analyzer, analyze
from stabkit.errors import NotALogError
from stabkit.finding import Diagnosis, Finding, Severity
from stabkit.runlog import RunLog, load
from stabkit.runlog.lines import read_lines
from stabkit.runlog.locate import ranks_to_read

__all__ = ["SHORTEST_PAUSE", "Follower", "keep_looking"]

SHORTEST_PAUSE = 0.05
"""Seconds between two looks at a log that is quickly judged."""

Key = tuple[int, float, int, str, int, str]
"""What makes a finding the same one: attempt and its first record's time, optimizer, rule, first step, first tensor."""


class Follower:
    """What has been told of one log.

    Args:
        path: The run's directory.
        analyzers: The rules.
        attempt: Which attempt; the last one by default, also where a new one begins.
        since: Tell nothing that was known before this time (seconds since the epoch): an earlier process recorded it.

    Attributes:
        diagnosis: What the last look found, None before the first.
        ended: Whether every process that records has closed its log.
        cost: How long the last look took, in seconds.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        analyzers: Iterable[Analyzer] = ANALYZERS,
        attempt: int | None = None,
        since: float = -math.inf,
    ) -> None:
        self.path = Path(path)
        self.diagnosis: Diagnosis | None = None
        self.ended = False
        self.cost = 0.0
        self._analyzers, self._attempt, self._since = tuple(analyzers), attempt, since
        self._seen: dict[str, tuple[int, int]] = {}
        self._told: dict[Key, Severity] = {}
        self._held_back = False  # whether steps were left for later that not all ranks had recorded

    def look(self, last: bool = False) -> list[Finding]:
        """The findings that were not told yet, by step; one whose severity has risen is told again.

        A finding is told with its consequences inside it; a consequence that comes later is told by itself.

        Args:
            last: Whether nothing will be added any more: steps that some ranks have not recorded are then judged as they are.

        Raises:
            NotALogError: there is no log here, or not yet.
            StabkitError: the log cannot be read.
        """
        now = _sizes(self.path)
        if now == self._seen and not (last and self._held_back):
            return []
        began = time.perf_counter()
        ended = _closed(self.path)  # before the records are read: what is written after this comes with the next look
        run = load(self.path, self._attempt)
        whole = run if last or ended else _recorded_by_all(run)
        self._held_back, run = whole is not run, whole
        self.diagnosis = analyze(run, self._analyzers)
        news = sorted(self._news(run, self.diagnosis), key=lambda finding: finding.first_step)
        self._seen, self.ended, self.cost = now, ended, time.perf_counter() - began
        return news

    def _news(self, run: RunLog, diagnosis: Diagnosis) -> Iterator[Finding]:
        views = [run.optimizer(index) for index in range(max(len(run.streams), 1))]
        begun = [_time(view, 0) for view in views]
        known = [_known(view, self._since) for view in views]
        for number, outcome in enumerate(diagnosis.outcomes):  # by rule and within it by optimizer
            index = number % len(views)
            for finding in outcome.findings:
                yield from self._untold(finding, (run.attempt, begun[index], index), known[index])

    def _untold(self, finding: Finding, place: tuple[int, float, int], known: int) -> Iterator[Finding]:
        key = _key(finding, place)
        if finding.first_step > known and finding.severity > self._told.get(key, 0):
            self._remember(finding, place)
            yield finding
        for consequence in finding.consequences:
            yield from self._untold(consequence, place, known)

    def _remember(self, finding: Finding, place: tuple[int, float, int]) -> None:
        self._told[_key(finding, place)] = finding.severity
        for consequence in finding.consequences:
            self._remember(consequence, place)


def keep_looking(
    follower: Follower,
    tell: Callable[[Finding], None],
    ending: threading.Event,
    share: float,
    complain: Callable[[Exception], None] = lambda error: None,
) -> None:
    """Look until the end, and once more then.

    Args:
        follower: The log. Where there is none yet, or for the moment, it is waited for.
        tell: Given every finding.
        ending: Set when nothing will be added to the log any more.
        share: How much of one core the looks may take.
        complain: Given what stopped a look; the next is tried all the same.
    """
    while True:
        last = ending.is_set()
        began = time.perf_counter()
        try:
            for finding in follower.look(last):
                tell(finding)
        except (NotALogError, FileNotFoundError):
            pass
        except Exception as error:
            follower.cost = time.perf_counter() - began
            complain(error)
        if last:
            return
        ending.wait(max(SHORTEST_PAUSE, follower.cost * (1 / share - 1)))


def _recorded_by_all(run: RunLog) -> RunLog:
    """The run without its latest steps that some ranks have yet to record: their mean loss would be another one afterwards."""
    streams = list(run.streams)
    for index, stream in enumerate(streams):
        ends = [int(own[index].steps[-1]) for own in run.ranks.values() if index < len(own) and len(own[index].steps)]
        if ends and min(ends) < max(ends):
            streams[index] = stream.until(min(ends))
    return run if all(a is b for a, b in zip(streams, run.streams, strict=True)) else replace(run, streams=tuple(streams))


def _key(finding: Finding, place: tuple[int, float, int]) -> Key:
    attempt, begun, index = place
    return attempt, begun, index, finding.rule, finding.first_step, next(iter(finding.tensors), "")


def _time(view: RunLog, row: int) -> float:
    times = view.stream.step_values.get("time")
    return float(times[row]) if times is not None and len(times) and not math.isnan(times[row]) else 0.0


def _known(view: RunLog, since: float) -> int:
    """The last step that was recorded before a time: all that is found up to it was known then.

    Later ones were not, also where the clock has been put back since.
    """
    times = view.stream.step_values.get("time")
    if times is None:
        return -1
    later = np.flatnonzero(times >= since)
    return int(np.max(view.steps[: later[0]] if len(later) else view.steps[times < since], initial=-1))


def _sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Identity and size of every file of the log: whatever is added changes it."""
    found = {}
    for folder in _folders(path):
        for entry in os.scandir(folder):
            if entry.is_file():
                about = entry.stat()
                found[entry.path] = (about.st_ino, about.st_size)
    return found


def _folders(path: Path) -> Iterator[Path]:
    for rank in ranks_to_read(path).values():
        yield rank
        yield from rank.glob("optimizer*/")


def _closed(path: Path) -> bool:
    """Whether the last thing that each process did was to close its log."""
    ends = []
    for rank in ranks_to_read(path).values():
        events, _ = read_lines(rank / "events.jsonl")
        ends.append([event["event"] for event in events if event.get("event") in ("open", "close")][-1:])
    return bool(ends) and all(end == ["close"] for end in ends)
