"""The training's end of live verdicts: starts what judges, and calls the user back. The training thread is never waited for.

What judges is a process of its own (`stabkit.live.child`); where none can be started, a thread, which says so in the log. In
the training process one thread waits at a pipe.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from stabkit.finding import Finding, Severity
from stabkit.live.wire import END, unpack

__all__ = ["Verdicts"]

PATIENCE = 10.0
"""Seconds that the end of a run waits for the last look at it, and for what `on_finding` is still doing."""
_SHARE_OF_A_THREAD = 0.02
"""Of one core: a thread holds the interpreter lock that the training needs."""
_START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from stabkit.live.child import main; main()"
_LEVELS = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING, Severity.ERROR: logging.ERROR}

_log = logging.getLogger("stabkit")
_running: weakref.WeakSet[Verdicts] = weakref.WeakSet()


class Verdicts:
    """Tells the findings of the run that this process records.

    Args:
        directory: Where it is recorded.
        on_finding: Called with every finding, in a thread of ours; whatever it raises is caught.
        note: Records an event in the log.
    """

    def __init__(self, directory: Path, on_finding: Callable[[Finding], Any], note: Callable[..., None]) -> None:
        self._directory, self._on_finding, self._note = directory.absolute(), on_finding, note
        self._since = time.time()
        self._owner = os.getpid()
        self._ending = threading.Event()
        self._complaints: set[str] = set()
        self._child = self._started()
        self._thread = threading.Thread(target=self._listen, name="stabkit-live", daemon=True)
        self._thread.start()
        _running.add(self)

    def finish(self) -> None:
        """The run is over and its log closed: tell what is left, in bounded time."""
        if os.getpid() != self._owner:
            return
        self._ending.set()
        try:
            if self._child:
                with suppress(OSError):  # it has ended
                    os.write(_descriptor(self._child.stdin), END)
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                self._complain(
                    "unfinished",
                    f"the last look at the run, or on_finding, took longer than {PATIENCE:.0f} s and was not waited for; "
                    "`stabkit analyze` says all there is",
                )
        finally:
            _running.discard(self)
            if self._child:
                self._child.kill()
                self._child.wait()
                _close(self._child.stdin)

    def forget(self) -> None:
        """In a forked child: let go of the pipes, or the judging process would outlive the training."""
        if self._child:
            _close(self._child.stdin)
            _close(self._child.stdout)

    def _started(self) -> subprocess.Popen[bytes] | None:
        """The process that judges, None where none can be started."""
        if not re.match(r"(python|pypy)", Path(sys.executable or "").name) or getattr(sys, "frozen", False):
            return None  # an application with Python inside would be started once more
        one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        environment = {**os.environ, **one_thread}
        environment.pop("PYTHONINSPECT", None)
        arguments = [json.dumps([os.path.abspath(path) for path in sys.path]), str(self._directory), repr(self._since)]
        # Ctrl-C is for the training alone. A session of its own would be scheduled as one, and `nice` mean nothing.
        apart: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
        try:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _START, *arguments, str(self._owner)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=environment,
                **(apart if os.name == "posix" else {}),
            )
        except (OSError, subprocess.SubprocessError):
            return None

    def _listen(self) -> None:
        """Tell what the process finds; where there is none, or it does not come up, look here."""
        try:
            ready = done = False
            for kind, content in self._heard():
                ready |= kind == "ready"
                done |= kind == "done"
                if kind == "finding":
                    self._tell(content)
                elif kind == "trouble":
                    self._complain("trouble", f"a look at the run failed ({content})")
            if not ready:
                self._look_here()
            elif not done and not self._ending.is_set():
                self._complain("stopped", "the process that judges the run has ended; `stabkit analyze` judges it afterwards")
        except Exception as error:
            self._complain("stopped", f"live verdicts have stopped ({type(error).__name__}: {error})")

    def _heard(self) -> Iterator[tuple[str, Any]]:
        """What the process says, until it has ended."""
        if self._child is None:
            return
        pipe, rest = _descriptor(self._child.stdout), b""
        try:
            while data := os.read(pipe, 1 << 16):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if said := unpack(line):
                        yield said
        finally:
            _close(self._child.stdout)

    def _look_here(self) -> None:
        from stabkit.live.follow import Follower, keep_looking

        self._remark("live_thread", why="no process could be started beside the training")
        follower = Follower(self._directory, since=self._since)
        keep_looking(follower, self._tell, self._ending, _SHARE_OF_A_THREAD, self._look_failed)

    def _look_failed(self, error: Exception) -> None:
        self._complain("trouble", f"a look at the run failed ({type(error).__name__}: {error})")

    def _tell(self, finding: Finding) -> None:
        what = f"{finding.severity} {finding.rule} {finding.name} at step {finding.first_step}: {finding.message}"
        _log.log(_LEVELS[finding.severity], "stabkit: %s", what)
        try:
            self._on_finding(finding)
        except BaseException as error:  # also SystemExit: it would end this thread and nothing else
            raised = f"on_finding raised {type(error).__name__}: {error}"
            self._complain("callback", f"{raised}; it is called again for the next finding")

    def _complain(self, kind: str, message: str) -> None:
        """Say once what went wrong."""
        if kind not in self._complaints:
            self._complaints.add(kind)
            self._remark("live_fault", what=kind, why=message)
            with suppress(Exception):
                _log.warning("stabkit: %s", message)

    def _remark(self, event: str, **details: Any) -> None:
        with suppress(Exception):  # a full disk
            self._note(event, **details)


def _descriptor(pipe: Any) -> int:
    return int(pipe.fileno())


def _close(pipe: Any) -> None:
    with suppress(OSError):
        pipe.close()


def _let_go() -> None:
    for verdicts in list(_running):
        verdicts.forget()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
