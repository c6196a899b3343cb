"""Logs of other tools, read as a `RunLog`: one file per format, and one function that opens whatever a path holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from stabkit.errors import NotALogError, UsageError
from stabkit.runlog import RunLog
from stabkit.runlog import load as load_own
from stabkit.runlog.locate import log_around
from stabkit.sources.assemble import assemble
from stabkit.sources.collect import Collected
from stabkit.sources.directory import Group, find_groups, runs_in

__all__ = ["load", "load_foreign", "runs_in"]

_KNOWN = "TensorBoard event files, CSV, JSON lines, trainer_state.json and text logs"


def load(path: str | os.PathLike[str], attempt: int | None = None, mapping: Mapping[str, str] | None = None) -> RunLog:
    """Read a run, whoever logged it.

    Args:
        path: A directory that was given to `stabkit.watch` (or a URL of one that fsspec knows), or a log of another tool:
            a TensorBoard event file or a directory of them, CSV, JSON lines, trainer_state.json or text, gzip or not.
        attempt: Which attempt, from 0; the last one by default.
        mapping: Of a log of another tool: columns by quantity, such as {"loss": "train/ce"}, where the guess is wrong.

    Returns:
        The run; what was wrong with the files is in its `notes`.

    Raises:
        NotALogError: there is nothing here that can be read.
        LogVersionError: written by another version of stabkit, in a format this one does not know.
        UsageError: there is no such attempt or column, the path holds several runs, or a log of stabkit was given a mapping.
    """
    try:
        run = load_own(path, attempt)
    except NotALogError as refusal:
        if "://" in os.fspath(path) or log_around(Path(path)):
            raise
        try:
            return load_foreign(path, mapping, attempt)
        except NotALogError as other:
            raise (other if Path(path).is_file() else refusal) from None
    if mapping:
        raise UsageError(f"{os.fspath(path)} was written by stabkit: its quantities need no map")
    return run


def load_foreign(path: str | os.PathLike[str], mapping: Mapping[str, str] | None = None, attempt: int | None = None) -> RunLog:
    """Read a log of another tool.

    Args:
        path: The file, or a directory that holds one run.
        mapping: Columns by quantity, where the guess is wrong; "" for a quantity that is to be taken from nowhere.
        attempt: Which attempt, from 0; the last one by default.

    Raises:
        NotALogError: it is no log of any kind known here, or none of its columns is a quantity of a step.
        UsageError: there is no such attempt or column, or the directory holds several runs.
    """
    name = os.fspath(path)
    groups = find_groups(Path(path), mapping)
    if not groups:
        what = "is a file that stabkit did not write and" if Path(path).is_file() else "holds nothing that"
        can = "cannot" if Path(path).is_file() else "can"
        raise NotALogError(f"{name} {what} {can} be read as a log of another tool. Known are {_KNOWN}.")
    if len(groups) > 1:
        listed = ", ".join(group.name for group in groups[:8]) + (f" and {len(groups) - 8} more" if len(groups) > 8 else "")
        raise UsageError(f"{name} holds several runs: {listed}. Give one of them")
    collected = _read(groups[0], name)
    run = assemble(collected, name, mapping, attempt)
    if not run.stream.step_values and not run.stream.group_values and not run.stream.tensors:
        if not run.scalars:
            what = "is a file that stabkit did not write, and no row of numbers was found in it"
            raise NotALogError(f"{name} {what}. Known are {_KNOWN}.")
        there = ", ".join(list(run.scalars)[:12]) or "none with numbers"
        raise NotALogError(f"{name} was read as {collected.format}, but no column was recognised. There are {there}. "
                           "Say which is which: --map step=NAME --map loss=NAME")  # fmt: skip
    return run


def _read(group: Group, name: str) -> Collected:
    collected = Collected()
    try:
        for file in group.files:
            group.read(file, collected)
    except OSError as error:
        raise NotALogError(f"{name} cannot be read: {error.strerror or error}. Check its permissions.") from error
    return collected
