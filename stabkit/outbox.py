"""What everything that is written passes through: done at once, on the thread that asks; for a disk that stalls, by a thread.

As a rule a record is in the kernel's hands before the step is over, and `kill -9` loses none. A file server that does not
answer would then hold up the training for as long, and those that train together with it, until they give up. So the first act
that takes longer than `STALL` is the last that is waited for in full: from there on a thread writes, in the same order. A step
waits for it as long as it keeps up, `WAIT` at most; once it has fallen behind, not at all until it has caught up. What waits
is held in memory, up to `ROOM`; what finds no room is not recorded, and counted. Killed then, a run loses what waited.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

__all__ = ["Outbox"]

STALL = 1.0
"""Seconds of one act; the usual ones take less than a thousandth."""
WAIT = 0.1
"""Seconds that an act is waited for where a thread does it."""
ROOM = 64 << 20
"""Bytes that may wait."""
PATIENCE = 30.0
"""Seconds that the end of a run waits for what still waits."""
_LEAST = 1024
_Result = TypeVar("_Result")


class _Task(Generic[_Result]):
    """An act, and what came of it."""

    def __init__(self, act: Callable[[], _Result], size: int) -> None:
        self._act, self.size = act, size
        self.done = threading.Event()
        self.result: _Result | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.result = self._act()
        except Exception as error:
            self.error = error
        self.done.set()


class Outbox:
    """Does what writes.

    Belongs to the process that made it: a forked child does what it does itself, and nothing of what waits.

    Args:
        stalled: Called once, with the seconds that an act took, when a thread is about to take over.
        caught_up: Called by that thread with the seconds that it was behind, and how many acts found no room meanwhile.
    """

    def __init__(self, stalled: Callable[[float], None], caught_up: Callable[[float, int], None]) -> None:
        self._stalled, self._caught_up = stalled, caught_up
        self._owner = os.getpid()
        self._thread: threading.Thread | None = None
        self._lock = threading.Condition()
        self._waiting: deque[_Task[Any]] = deque()
        self._held = 0
        self._lost = 0
        self._late: Exception | None = None
        self._behind_since: float | None = None
        self._over = False

    @property
    def apart(self) -> bool:
        """Whether a thread writes."""
        return self._thread is not None

    def do(self, act: Callable[[], Any], size: int = 0) -> None:
        """Do it, now or as soon as the disk lets us.

        Args:
            act: What to do.
            size: Bytes that it holds while it waits.

        Raises:
            Exception: what the act raised, or one before it that was not waited for.
        """
        if self._thread is None:
            self._at_once(act)
        elif os.getpid() == self._owner:
            task = self._hand_over(act, size)
            if task is not None and not self._keeps_up(task):
                self._fallen_behind()
            self._raise(task)

    def ask(self, act: Callable[[], _Result]) -> _Result:
        """What the act returns. Raises TimeoutError where the disk keeps us waiting; it is done later all the same."""
        if self._thread is None or os.getpid() != self._owner:
            return self._at_once(act)
        task = self._hand_over(act, 0)
        if task is None or not task.done.wait(WAIT):
            self._fallen_behind()
            raise TimeoutError("the disk keeps stabkit waiting")
        self._raise(task)
        return task.result  # type: ignore[return-value]

    def settle(self) -> int:
        """Wait until nothing waits any more, for `PATIENCE` at most; returns how many acts still do."""
        if self._thread is None or os.getpid() != self._owner:
            return 0
        with self._lock:
            self._lock.wait_for(lambda: not self._waiting, PATIENCE)
            return len(self._waiting)

    def end(self) -> None:
        """Nothing more will come: the thread ends when it has done what waits."""
        if self._thread is not None and os.getpid() == self._owner:
            with self._lock:
                self._over = True
                self._lock.notify_all()

    def _at_once(self, act: Callable[[], _Result]) -> _Result:
        begin = time.monotonic()
        try:
            return act()
        finally:
            took = time.monotonic() - begin
            if took > STALL and self._thread is None:
                self._take_over(took)

    def _take_over(self, took: float) -> None:
        thread = threading.Thread(target=self._work, name="stabkit-writing", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread is to be had: as before, then
            return
        self._thread = thread
        with suppress(Exception):  # it is told, or it is not; what was asked for is done
            self._stalled(took)

    def _hand_over(self, act: Callable[[], _Result], size: int) -> _Task[_Result] | None:
        task = _Task(act, size + _LEAST)
        with self._lock:
            if self._held + task.size > ROOM:
                self._lost += 1
                return None
            self._waiting.append(task)
            self._held += task.size
            self._lock.notify_all()
        return task

    def _keeps_up(self, task: _Task[Any]) -> bool:
        return self._behind_since is None and task.done.wait(WAIT)

    def _fallen_behind(self) -> None:
        with self._lock:
            if self._behind_since is None and self._waiting:
                self._behind_since = time.monotonic() - WAIT

    def _raise(self, task: _Task[Any] | None) -> None:
        late, self._late = self._late, None
        error = task.error if task is not None and task.done.is_set() else None
        if error is not None or late is not None:
            raise error or late  # type: ignore[misc]

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    return
                task = self._waiting[0]
            task.run()
            if self._behind_since is not None and task.error is not None:
                self._late = task.error  # nobody has waited for it
            if len(self._waiting) == 1:
                self._tell_caught_up()
            with self._lock:
                self._waiting.popleft()
                self._held -= task.size
                self._lock.notify_all()

    def _tell_caught_up(self) -> None:
        with self._lock:
            since, self._behind_since = self._behind_since, None
            lost, self._lost = self._lost, 0
        if since is None:
            return
        try:
            self._caught_up(time.monotonic() - since, lost)
        except Exception as error:  # a full disk, say
            self._late = error
