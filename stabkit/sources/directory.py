"""Finds the runs in a directory: its files that are logs, event files of one run together, logs of stabkit as they are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stabkit.errors import NotALogError, StabkitError
from stabkit.runlog.locate import ranks_to_read
from stabkit.sources.collect import Collected
from stabkit.sources.columns import take
from stabkit.sources.detect import Reader, recognise
from stabkit.sources.tensors import tensor_columns

__all__ = ["Group", "find_groups", "runs_in"]

_DEEPEST, _MOST_FILES = 8, 20_000
_ROWS_TRIED = 300
"""Of a file in a directory, to see whether it is a log at all."""
_EVENT_FILE = re.compile(r"(?P<run>.*?)events\.out\.tfevents\.(?P<time>\d+)?.*")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Group:
    """The files of one run.

    Attributes:
        name: How the run is called: the path of its only file, or of the directory of its event files.
        files: In the order in which they were written.
        read: What reads them.
    """

    name: str
    files: tuple[Path, ...]
    read: Reader


def find_groups(path: Path, mapping: Mapping[str, str] | None = None) -> list[Group]:
    """The runs of other tools at a path: of a file at most one, of a directory those of all files in and below it.

    Args:
        path: The path.
        mapping: Columns by quantity, as the user said: a file in a directory that has one of them is a log.

    Raises:
        NotALogError: it cannot be looked at.
    """
    try:
        if path.is_file():
            reader = recognise(path)
            return [Group(str(path), (path,), reader)] if reader else []
        return _in_directory(path, set((mapping or {}).values())) if path.is_dir() else []
    except OSError as error:
        what = f"{error.filename or path} cannot be read: {error.strerror or error}"
        raise NotALogError(f"{what}. Check its permissions.") from error


def runs_in(path: str, mapping: Mapping[str, str] | None = None) -> list[str]:
    """The paths to load for a path: itself, or, where it is a directory of several runs, each of them."""
    root = Path(path)
    if "://" in path or not root.is_dir() or _is_own(root):
        return [path]
    own = [str(directory) for directory in sorted(_directories(root)) if _is_own(directory)]
    foreign = find_groups(root, mapping)
    several = sorted(own) + [group.name for group in foreign]
    return several if len(several) > 1 else [path]


def _in_directory(root: Path, told: set[str]) -> list[Group]:
    """The groups in a directory and those below it; what stabkit wrote is not among them."""
    groups = [group for directory in _directories(root) if not _is_own(directory) for group in _directly_in(directory, told)]
    return _without_earlier_checkpoints(groups)


def _directly_in(directory: Path, told: set[str]) -> list[Group]:
    groups: list[Group] = []
    events: dict[str, list[tuple[Path, Reader]]] = {}
    for file in sorted(entry for entry in directory.iterdir() if entry.is_file() and not entry.name.startswith(".")):
        reader = recognise(file)
        match = _EVENT_FILE.fullmatch(file.name)
        if reader is None or not _is_log(file, reader, told):
            continue
        if match:
            events.setdefault(match["run"], []).append((file, reader))
        else:
            groups.append(Group(str(file), (file,), reader))
    for run, found in events.items():
        files = tuple(sorted((file for file, _ in found), key=_begun))
        name = directory if not run and len(files) > 1 else files[0]
        groups.append(Group(str(name), files, found[0][1]))
    return groups


def _is_log(file: Path, reader: Reader, told: set[str]) -> bool:
    """Whether the first rows of a file hold a quantity of a step. Tables of results and settings lie about, too."""
    tried = Collected(_ROWS_TRIED)
    reader(file, tried)
    taken = take(tried)
    known = set(taken.quantities) - {"step", "time"}
    return bool(known or told & set(tried.columns) or tensor_columns(tried, taken).infos)


def _begun(file: Path) -> tuple[int, str]:
    """When an event file was begun, by its name."""
    match = _EVENT_FILE.fullmatch(file.name)
    return int(match["time"] or 0) if match else 0, file.name


def _without_earlier_checkpoints(groups: list[Group]) -> list[Group]:
    """Of the trainer_state.json of several checkpoints of one run the last: it holds what the others hold."""
    last: dict[Path, tuple[float, Group]] = {}
    kept = []
    for group in groups:
        file = group.files[0]
        if file.name != "trainer_state.json":
            kept.append(group)
            continue
        match = _CHECKPOINT.fullmatch(file.parent.name)
        run = file.parent.parent if match else file.parent
        reached = float(match[1]) if match else float("inf")
        if run not in last or reached > last[run][0]:
            last[run] = (reached, group)
    return kept + [group for _, group in last.values()]


def _directories(root: Path) -> list[Path]:
    """A directory and those below it, but nothing of what is inside a log of stabkit."""
    found: list[Path] = []
    queue = [(root, 0)]
    while queue and len(found) < _MOST_FILES:
        directory, depth = queue.pop(0)
        found.append(directory)
        if depth < _DEEPEST and not _is_own(directory):
            below = sorted(entry.path for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False))
            queue += [(Path(entry), depth + 1) for entry in below if not Path(entry).name.startswith(".")]
    return found


def _is_own(directory: Path) -> bool:
    """Whether stabkit wrote this directory."""
    try:
        return bool(ranks_to_read(directory))
    except StabkitError:
        return False
