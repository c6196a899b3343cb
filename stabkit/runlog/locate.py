"""Finds the log a path or URL stands for, or says what was found instead."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stabkit.errors import NotALogError, UsageError
from stabkit.runlog.lines import decode_line, read_lines

__all__ = ["local_copy", "log_around", "rank_directories", "ranks_to_read", "stream_folders"]

_ADVICE = "Give the directory that was passed to stabkit.watch."


@contextmanager
def local_copy(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path itself; of a URL such as s3://bucket/run, a copy that lasts as long as the `with`.

    Raises:
        UsageError: what reads such URLs is not installed.
        NotALogError: there is nothing, or it cannot be fetched.
    """
    text = os.fspath(path)
    if "://" not in text:
        yield Path(path)
        return
    # Whatever was opened in the copy stays readable afterwards: a mapped file lives until the last map of it is gone.
    with tempfile.TemporaryDirectory(prefix="stabkit-", ignore_cleanup_errors=True) as folder:
        _fetch(text, Path(folder) / "run")
        yield Path(folder) / "run"


def _fetch(url: str, target: Path) -> None:
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise UsageError(f"{url} is a URL, and reading those needs fsspec: pip install fsspec") from None
    try:
        system, remote = url_to_fs(url)
        if not system.exists(remote):
            raise NotALogError(f"there is no {url}. {_ADVICE}")
        if not system.isdir(remote):
            raise NotALogError(f"{url} is a file. {_ADVICE}")
        system.get(remote.rstrip("/") + "/", f"{target}{os.sep}", recursive=True)
    except (ImportError, ValueError) as error:  # the protocol is unknown, or its package is not installed
        raise UsageError(f"{url} cannot be read, for {scheme}:// needs another package: {error}") from error
    except NotALogError:
        raise
    except Exception as error:  # every file system has errors of its own
        raise NotALogError(f"{url} cannot be fetched ({type(error).__name__}: {error})") from error


def ranks_to_read(root: Path) -> dict[int, Path]:
    """Where the files of each rank lie, by rank; of a rank's own directory, that alone.

    Raises:
        NotALogError: there is nothing here that stabkit wrote; the message says what there is.
    """
    try:
        return _find(root)
    except OSError as error:
        raise NotALogError(f"{root} cannot be read: {error.strerror}. Check its permissions.") from error


def rank_directories(root: Path) -> dict[int, Path]:
    """The directories of a run that are called like those of ranks, by rank."""
    inside = sorted(os.listdir(root))  # raises where this is not permitted; glob would find nothing
    return {int(match[1]): root / name for name in inside if (match := re.fullmatch(r"rank(\d{5})", name))}


def stream_folders(directory: Path) -> dict[int, Path]:
    """The folder of each optimizer's stream, by the optimizer's index."""
    found = ((re.fullmatch(r"optimizer(\d{1,4})", path.name), path) for path in directory.glob("optimizer*"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def log_around(file: Path) -> Path | None:
    """The log that a file is part of; None where it is part of none."""
    return next((parent for parent in (file.parent, *file.parent.parents[:2]) if _is_log(parent)), None)


def _find(root: Path) -> dict[int, Path]:
    if not root.exists():
        raise NotALogError(f"there is no {root}. {_ADVICE}")
    if not root.is_dir():
        if owner := log_around(root):
            raise NotALogError(f"{root} is a file of the log {owner}. Give that directory.")
        raise NotALogError(f"{root} is a file that stabkit did not write. {_ADVICE}")
    ranks = rank_directories(root)
    if found := {rank: directory for rank, directory in ranks.items() if _is_log(directory)}:
        return found
    if _is_log(root):
        own = re.fullmatch(r"rank(\d{5})", root.name)
        return {int(own[1]) if own else 0: root}
    inside = sorted(os.listdir(root))
    runs = [name for name in inside if any(_is_log(rank) for rank in (root / name).glob("rank*"))]
    if runs:
        listed = ", ".join(runs[:8]) + (f" and {len(runs) - 8} more" if len(runs) > 8 else "")
        raise NotALogError(f"{root} holds several runs: {listed}. Give one of them, or all: {root}{os.sep}*")
    visible = [name for name in inside if not name.startswith(".")]
    if not visible or ranks:
        raise NotALogError(f"{root} is empty: nothing was recorded in it. Was the run started with another logdir?")
    listed = ", ".join(visible[:3]) + (f" and {len(visible) - 3} more" if len(visible) > 3 else "")
    raise NotALogError(f"{root} holds no log that stabkit wrote (it holds {listed}). {_ADVICE}")


def _is_log(directory: Path) -> bool:
    """Whether stabkit wrote here: a readable manifest, a readable event or a segment shows it."""
    if not directory.is_dir():
        return False
    if any(any(folder.glob("*-[0-9]*.npy")) for folder in stream_folders(directory).values()):
        return True
    manifest = directory / "run.json"
    if manifest.is_file() and decode_line(manifest.read_bytes()) is not None:
        return True
    return bool(read_lines(directory / "events.jsonl")[0])
