"""What a careless tool leaves changed in a process: functions of torch, global tables, file descriptors, threads, memory."""

from __future__ import annotations

import os
import resource
import sys
import threading
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["Tables", "descriptors", "memory", "tables", "threads"]

Tables = dict[str, Any]
"""By a dotted place: the identity of a function, class or other attribute, what a cell holds, the keys of a table."""


def tables(package: str = "torch") -> Tables:
    """Everything that could be patched in a package: attributes of modules and classes, cells of functions, keys of tables.

    Found by looking, not listed: what stabkit patches next year is compared, too.
    """
    found: Tables = {}
    for name, module in sorted(sys.modules.items()):
        if isinstance(module, ModuleType) and (name == package or name.startswith(package + ".")):
            for key, value in list(vars(module).items()):
                _look(f"{name}.{key}", value, found)
                if issubclass(type(value), type) and value.__module__ == name:
                    for attribute, inner in list(vars(value).items()):
                        _look(f"{name}.{key}.{attribute}", inner, found)
    return found


def _look(place: str, value: Any, found: Tables) -> None:
    kind = type(value)  # a proxy answers isinstance by running code of its own
    if kind is FunctionType:
        found[place] = id(value)
        for index, cell in enumerate(value.__closure__ or ()):
            try:
                found[f"{place}<{index}>"] = id(cell.cell_contents)
            except ValueError:  # an empty cell
                found[f"{place}<{index}>"] = None
    elif issubclass(kind, type):
        found[place] = id(value)
    elif issubclass(kind, dict) and "hooks" in place:
        found[place] = tuple(value)


def descriptors() -> int:
    """How many file descriptors are open."""
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) - 1 if folder.exists() else 0


def threads() -> int:
    """How many threads of Python there are."""
    return threading.active_count()


def memory() -> int:
    """Bytes that this process holds in memory now."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
