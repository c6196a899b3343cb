"""Process-wide patches, put in place while at least one monitor is attached, and the guard around every callback.

The user's objects are never modified: no attribute of a model, optimizer or scaler is replaced, so copies, pickles and
checkpoints of them know nothing of stabkit. What is patched are a few functions of torch, restored on exit unless another
tool has patched on top; then a pass-through stays in place.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, Protocol

import torch

from stabkit.hooks.faults import SeveralThreads

__all__ = [
    "Monitor",
    "Nesting",
    "Undo",
    "all_or_none",
    "attach",
    "detach",
    "listening",
    "notify",
    "patch_attribute",
    "patch_closure_cell",
    "refuse_several_threads",
    "remembered",
    "trouble",
]

Undo = Callable[[], None]


class Monitor(Protocol):
    """What receives the events of the recorders."""

    alive: bool

    def install(self) -> list[Undo]:
        """Patch torch; must not raise."""

    def receive(self, event: str, *details: Any) -> None:
        """Handle an event; may raise, the guard catches."""

    def fault(self, event: str, error: Exception) -> None:
        """Note that handling an event failed."""


_lock = threading.RLock()
_monitors: tuple[Monitor, ...] = ()
_homes: dict[int, int] = {}
"""By `id` of each monitor the thread that attached it. What one such thread does is no business of another's monitor."""
_at_once: set[int] = set()
"""Threads that were seen in one of torch's functions while another thread was in it."""
_undo: list[Undo] = []
_process = os.getpid()


class Nesting:
    """Tells the outermost of nested calls: `with nesting as outermost`.

    One per patched thing and process, not per patch: a patch that another tool kept alive is then inside the current one, and
    nothing is seen twice. Each thread nests by itself, but for those that Python did not make: of a reentrant checkpoint on a
    GPU, the inner backward comes from a thread of torch.
    """

    def __init__(self) -> None:
        self._depths: dict[int, int] = {}

    def __enter__(self) -> bool:
        here = threading.get_ident()
        self._depths[here] = depth = self._depths.get(here, 0) + 1
        if depth > 1 or len(self._depths) == 1:
            return depth == 1
        if here not in threading._active:  # type: ignore[attr-defined]  # `current_thread` would make it one of Python's
            return False
        _at_once.update(self._depths)
        return True

    def __exit__(self, *_: object) -> None:
        here = threading.get_ident()
        self._depths[here] -= 1
        if not self._depths[here]:
            del self._depths[here]

    @property
    def entered(self) -> bool:
        """Whether this thread is inside any such call."""
        return threading.get_ident() in self._depths


def refuse_several_threads(stepping: set[int]) -> None:
    """Note that this thread steps something; raise SeveralThreads if another does so, too, and they train at the same time.

    Args:
        stepping: The threads that were noted before; this one is added.
    """
    stepping.add(threading.get_ident())
    if len(stepping) > 1 and len(stepping & _at_once) > 1:
        raise SeveralThreads("two threads train at once under one stabkit.watch: let each enter one of its own")


def attach(monitor: Monitor) -> None:
    """Send events to this monitor from now on; the first one patches torch."""
    global _monitors, _process
    with _lock:
        if not _monitors:
            _process = os.getpid()
            try:
                _undo.extend(monitor.install())
            except BaseException:
                _restore()
                raise
        _homes[id(monitor)] = threading.get_ident()
        _monitors = (*_monitors, monitor)


def detach(monitor: Monitor) -> None:
    """Send no more events to this monitor; the last one to leave restores torch."""
    global _monitors
    with _lock:
        _monitors = tuple(m for m in _monitors if m is not monitor)
        _homes.pop(id(monitor), None)
        if not _monitors:
            _restore()


def _restore() -> None:
    failures: list[Exception] = []
    while _undo:
        undo = _undo.pop()
        try:
            undo()
        except Exception as error:  # the others are undone all the same
            failures.append(error)
    if failures:
        raise failures[0]


def remembered(undo: Undo) -> Undo:
    """The same, noted at once: a part that fails between two of its patches leaves none of them behind. May be called twice."""
    _undo.append(undo)
    return undo


def listening() -> bool:
    """Whether anybody would hear an event.

    False in a forked child (a DataLoader worker), which shares the patches. False while a CUDA graph is captured: nothing is
    computed then, an operation of ours would become part of the user's graph, and its replays run without Python.
    """
    try:
        if not _monitors or os.getpid() != _process:
            return False
        if _capturing():
            _deliver("captured")
            return False
        return True
    except Exception as error:
        trouble("listening", error)
        return False


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # never the one to initialise CUDA


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a traced hook would change the user's graphs (and lose the record)
def notify(event: str, *details: Any) -> None:
    """Tell every monitor. Nothing raised in here reaches the user's training; KeyboardInterrupt does, as it should."""
    try:
        if listening():
            _deliver(event, *details)
    except Exception as error:
        trouble(event, error)


def trouble(where: str, error: Exception) -> None:
    """Tell every monitor that something of ours failed outside of its handlers; raises nothing."""
    try:
        for monitor in _monitors:
            if monitor.alive:
                _tell(monitor, where, error)
    except Exception:
        pass


def _tell(monitor: Monitor, where: str, error: Exception) -> None:
    try:
        monitor.fault(where, error)
    except Exception:
        monitor.alive = False


def _deliver(event: str, *details: Any) -> None:
    here = threading.get_ident()
    has_own = here in list(_homes.values())
    for monitor in _monitors:
        if not monitor.alive or (has_own and _homes.get(id(monitor)) != here):
            continue
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                monitor.receive(event, *details)
        except Exception as error:  # the promise: training goes on
            _tell(monitor, event, error)


def all_or_none(patches: Iterable[Undo | None]) -> list[Undo]:
    """What restores them; nothing, and nothing patched, where one could not be: half of what a loop does misleads."""
    found = list(patches)
    if None not in found:
        return [undo for undo in found if undo is not None]
    for undo in found:
        if undo is not None:
            undo()
    return []


def patch_closure_cell(function: Any, wrap: Callable[[Any], Any], variable: str = "func") -> Undo | None:
    """Replace what a decorated function calls, so that every alias and early import of it is seen too.

    Returns:
        What restores it; None where the function is not of that kind, and nothing was patched.
    """
    if not isinstance(function, FunctionType) or function.__closure__ is None:
        return None
    if variable not in function.__code__.co_freevars:
        return None
    cell = function.__closure__[function.__code__.co_freevars.index(variable)]
    original = cell.cell_contents
    replacement = wrap(original)

    def undo() -> None:
        if cell.cell_contents is replacement:
            cell.cell_contents = original

    remembered(undo)
    cell.cell_contents = replacement
    return undo


def patch_attribute(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Undo | None:
    """Replace an attribute that a module or class itself defines. Returns what restores it, or None where it has none."""
    original = vars(owner).get(name)
    if original is None:
        return None
    replacement = wrap(original)

    def undo() -> None:
        if vars(owner).get(name) is replacement:
            setattr(owner, name, original)

    remembered(undo)
    setattr(owner, name, replacement)
    return undo
