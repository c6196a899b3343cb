"""Finds the runs under TensorBoard's log directory. A run is asked for by a key made here, never by a path of the caller's."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stabkit.runlog.locate import rank_directories

__all__ = ["Logs", "Run", "roots_of"]

_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
"""Seconds between two walks through the directory: at least, and at most; in between they follow from what a walk took."""
_PATIENCE = 0.5
"""Seconds that a caller waits for the first walk."""
_DEPTH, _MOST_FOLDERS = 12, 100_000
_HOLDS = ("run.json", "events.jsonl", "optimizer0")


@dataclass(frozen=True)
class Run:
    """A run that was found.

    Attributes:
        key: What it is asked for by.
        name: Its path below the log directory, as people know it.
        path: Where it lies.
    """

    key: str
    name: str
    path: Path

    def stamp(self) -> str:
        """A text that is another one when anything was added to the log; "" where it is gone."""
        return self.state()[0]

    def state(self) -> tuple[str, int]:
        """The stamp, and how many bytes the log has."""
        seen, size = hashlib.sha1(usedforsecurity=False), 0
        try:
            for folder in self._folders():
                for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                    if entry.is_file() and not entry.name.startswith("events.out."):
                        about = entry.stat()
                        state = f"{entry.name} {about.st_ino} {about.st_size} {about.st_mtime_ns};"
                        seen.update(state.encode(errors="replace"))
                        size += about.st_size
        except OSError:
            return "", 0
        return seen.hexdigest()[:16], size

    def _folders(self) -> Iterator[Path]:
        for rank in rank_directories(self.path).values():
            yield rank
            yield from sorted(rank.glob("optimizer*/"))


def roots_of(logdir: str | None, logdir_spec: str | None = None) -> dict[str, Path]:
    """The local directories that TensorBoard was told to show, by the name put in front of what is in them.

    Args:
        logdir: `--logdir`.
        logdir_spec: `--logdir_spec`, such as "first:/runs/a,second:/runs/b".
    """
    roots = {"": logdir} if logdir else {}
    for part in filter(None, (logdir_spec or "").split(",")):
        name, colon, path = part.partition(":")
        roots |= {name: path} if colon and not path.startswith("//") else {part: part}
    return {name: Path(path).expanduser() for name, path in roots.items() if "://" not in path}


class Logs:
    """The runs of stabkit below some directories. Links to directories are not followed: nothing outside is served.

    Args:
        roots: The directories by the name put in front of what is in them, "" for none.
    """

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self._roots = dict(roots)
        self._found: dict[str, Run] = {}
        self._lock = threading.Lock()
        self._walked = threading.Event()
        self._next = 0.0

    def runs(self) -> dict[str, Run]:
        """By key, in alphabetical order, as found lately; the directory is walked beside, not while somebody waits."""
        with self._lock:
            if time.monotonic() >= self._next:
                self._next = float("inf")
                threading.Thread(target=self._walk, name="stabkit-logs", daemon=True).start()
        self._walked.wait(_PATIENCE)
        return self._found

    def _walk(self) -> None:
        began = time.monotonic()
        try:
            found = [run for name, root in self._roots.items() for run in _runs_in(name, root)]
            self._found = {run.key: run for run in sorted(found, key=lambda run: run.name)}
        finally:
            took = time.monotonic() - began
            self._next = time.monotonic() + min(max(_PAUSE, 10 * took), _LONGEST_PAUSE)
            self._walked.set()


def _runs_in(name: str, root: Path) -> Iterator[Run]:
    start = os.path.realpath(root)
    for count, (folder, inside, _) in enumerate(os.walk(start)):
        below = os.path.relpath(folder, start)
        depth = 0 if below == "." else below.count(os.sep) + 1
        if count >= _MOST_FOLDERS:
            return
        try:
            ranks = {path.name: path for path in rank_directories(Path(folder)).values() if not path.is_symlink()}
        except OSError:
            continue
        if any((path / held).exists() for path in ranks.values() for held in _HOLDS):
            told = "/".join(part for part in (name, "" if below == "." else below) if part) or os.path.basename(start)
            key = hashlib.sha1(os.fsencode(os.path.join(name, below)), usedforsecurity=False).hexdigest()[:16]
            yield Run(key, told, Path(folder))
        inside[:] = sorted(each for each in inside if each not in ranks) if depth < _DEPTH else []
