"""Two jobs never write into one directory: each claims its own, and a forked child inherits no claim.

The processes of one job share a directory without speaking to each other. Each locks a file of its rank; those that are not
rank 0 also look whether rank 0's file is locked by another job, which that file names.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no advisory locks
    fcntl = None

__all__ = ["claim_directory"]

_held: dict[int, tuple[int, int] | None] = {}
"""Descriptor of each lock -> (device, inode) of the lock file, to know it again after the descriptor was reused."""
_PATIENCE = 0.2
"""Seconds that rank 0 of the same job is given to write its job's name over that of an earlier one."""


def claim_directory(run: str | os.PathLike[str], rank: int = 0, job: str = "") -> tuple[Path, int | None]:
    """The directory this process may write: `run`; while another job writes it, the first free one of `run.2`, `run.3`, ...

    Args:
        run: The directory that was asked for.
        rank: Rank of this process.
        job: What all processes of this job have in common, and those of no other job that is alive.

    Returns:
        The directory, and the descriptor of the lock to keep open until the end (None where locks are not to be had: on
        Windows and on file systems without them. Segments are kept apart there all the same, by exclusive creation).

    Raises:
        OSError: the directory cannot be made.
    """
    for number in range(1, 1000):
        path = Path(run) if number == 1 else Path(f"{os.fspath(run)}.{number}")
        path.mkdir(parents=True, exist_ok=True)
        if fcntl is None:  # pragma: no cover - Windows
            return path, None
        lock = os.open(path / (f".lock-{rank:05d}" if rank else ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            free = _lock(lock) and not (rank and _taken_by_another(path / ".lock", job))
        except OSError:  # a file system without locks
            os.close(lock)
            return path, None
        if not free:
            os.close(lock)
            continue
        if not rank:
            _write_name(lock, job)
        _held[lock] = _identity(lock)
        return path, lock
    raise OSError(f"a thousand processes write beside {run}")


def _lock(file: int) -> bool:
    """Whether the file could be locked. A look at it by another process, over in microseconds, is waited for."""
    for attempt in range(3):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01 * (attempt < 2))
    return False


def _taken_by_another(lock: Path, job: str) -> bool:
    """Whether rank 0's file is locked by another job. It may still name one that is over: our rank 0 may come later."""
    end = time.monotonic() + _PATIENCE
    while lock.exists():
        file = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pread(file, 1024, 0) == job.encode():
                return False
            if time.monotonic() > end:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        time.sleep(0.02)
    return False


def _write_name(lock: int, job: str) -> None:
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, job.encode(), 0)
    except OSError:  # a full disk: the lock holds all the same
        pass


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _let_go() -> None:
    """In a forked child: drop the inherited locks. They would outlive the parent in a data loader's worker.

    Each descriptor stays open, on the null device: the child may come to close it.
    """
    for lock, identity in _held.items():
        if _identity(lock) == identity:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, lock, inheritable=False)
            os.close(null)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
