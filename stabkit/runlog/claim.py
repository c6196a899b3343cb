"""Two processes never write into one directory: each claims its own, and a forked child inherits no claim."""

from __future__ import annotations

import os
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


def claim_directory(run: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """The directory this process may write: `run`; while another writes it, the first free one of `run.2`, `run.3`, ...

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
        lock = os.open(path / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        except OSError:  # a file system without locks
            os.close(lock)
            return path, None
        _held[lock] = _identity(lock)
        return path, lock
    raise OSError(f"a thousand processes write beside {run}")


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
