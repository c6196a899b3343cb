"""Between TensorBoard's requests and the processes that answer them: remembers answers, and keeps nobody waiting."""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stabkit.dashboard.child import COMMAND

__all__ = ["Desk", "Reply"]

Take = Callable[[bytes, float], None]
"""What is done with an answer, and with the seconds it took."""

_PATIENCE = 0.6
"""Seconds that a question waits for its answer; the browser asks again then."""
_ROOM = 96_000_000
"""Bytes of answers that are remembered; those asked for longest ago go first."""
_ORDER = ("rule", "timeline", "tensor", "heatmaps", "verdict")
"""What is quickly answered goes first."""
_SHARE = 0.25
"""Of the time, how much a process may spend on answering the same question anew while a log grows."""


@dataclass(frozen=True)
class Reply:
    """What there is to say.

    Attributes:
        body: The answer as JSON; None where there is none yet.
        stamp: The state of the log that the answer is about.
        busy: Whether a newer answer is being worked out.
    """

    body: bytes | None
    stamp: str
    busy: bool


@dataclass
class _Entry:
    asked: str = ""
    stamp: str = ""
    body: bytes | None = None
    busy: bool = False
    made: float = 0.0
    cost: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)


class Desk:
    """Two processes: one judges, the other draws, so that pictures need not wait for the verdict."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._lanes = {"verdict": _Lane("judge"), "": _Lane("draw")}

    def ask(self, question: Mapping[str, Any], stamp: str) -> Reply:
        """The answer, or what was last answered to this question, or that there is none yet; within `_PATIENCE`.

        Args:
            question: As `stabkit.dashboard.views.view` knows them.
            stamp: The state of the log now.
        """
        key = json.dumps(question, sort_keys=True)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            rested = time.monotonic() - entry.made > entry.cost * (1 / _SHARE - 1)
            if not entry.busy and (entry.body is None or (entry.stamp != stamp and rested)):
                entry.asked, entry.busy, entry.done = stamp, True, threading.Event()
                lane = self._lanes.get(question["what"], self._lanes[""])
                lane.put(_ORDER.index(question["what"]), key, lambda body, cost: self._take(entry, body, cost))
            done = entry.done
        done.wait(_PATIENCE)
        return Reply(entry.body, entry.stamp, entry.busy)

    def _take(self, entry: _Entry, body: bytes, cost: float) -> None:
        with self._lock:
            entry.body, entry.stamp, entry.busy = body, entry.asked, False
            entry.made, entry.cost = time.monotonic(), cost
            while sum(len(each.body or b"") for each in self._entries.values()) > _ROOM and len(self._entries) > 1:
                oldest = next(key for key, each in self._entries.items())
                if self._entries[oldest].busy or self._entries[oldest] is entry:
                    break
                del self._entries[oldest]
        entry.done.set()


class _Lane:
    """One process, and the questions that wait for it; of one kind the latest comes first, for somebody looks at its place."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: queue.PriorityQueue[tuple[int, int, str, Take]] = queue.PriorityQueue()
        self._count = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = False

    def put(self, order: int, line: str, take: Take) -> None:
        self._waiting.put((order, -next(self._count), line, take))
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._work, name=f"stabkit-{self._name}", daemon=True).start()

    def _work(self) -> None:
        while True:
            _, _, line, take = self._waiting.get()
            began = time.monotonic()
            try:
                body = self._converse(line.encode() + b"\n")
            except Exception as error:  # whoever asked must learn of it, and the next be answered
                body = _trouble(f"the process that reads logs cannot be started ({type(error).__name__}: {error})")
            take(body, time.monotonic() - began)

    def _converse(self, line: bytes) -> bytes:
        if self._process is None or self._process.poll() is not None:
            path = os.pathsep.join(each for each in sys.path if each)
            self._process = subprocess.Popen(
                [*COMMAND, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        process = self._process
        assert process.stdin and process.stdout
        try:
            process.stdin.write(line)
            process.stdin.flush()
            body = process.stdout.readline()
        except OSError:
            body = b""
        if body.endswith(b"\n"):
            return body[:-1]
        process.kill()
        code, self._process = process.wait(), None
        return _trouble(f"the process that reads logs ended with code {code}; the log may need more memory than there is")


def _trouble(what: str) -> bytes:
    return json.dumps({"error": what}).encode()
