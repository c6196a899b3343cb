"""Tells whether an input reached a line of stabkit that none had reached before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Lines"]

_HOUSE = Path(__file__).resolve().parents[2]
_ROOMS = tuple(str(_HOUSE / room) + "/" for room in ("stabkit", "analyzers"))
_TRACED = 20
"""Where every line costs: one input in so many is looked at."""


class Lines:
    """The lines reached so far.

    Attributes:
        reached: (file, line) of each.
    """

    def __init__(self) -> None:
        self.reached: set[tuple[str, int]] = set()
        self._calls = 0
        self._monitoring: Any = getattr(sys, "monitoring", None)
        if self._monitoring:
            tool, events = self._monitoring.COVERAGE_ID, self._monitoring.events
            self._monitoring.use_tool_id(tool, "stabkit-fuzz")
            self._monitoring.register_callback(tool, events.LINE, self._line)
            self._monitoring.set_events(tool, events.LINE)

    @contextmanager
    def watching(self) -> Iterator[Callable[[], bool]]:
        """Inside, what runs is followed; what is yielded says whether anything new was reached."""
        before = len(self.reached)
        self._calls += 1
        traced = self._monitoring is None and self._calls % _TRACED == 0
        if traced:
            sys.settrace(self._trace)
        try:
            yield lambda: len(self.reached) > before
        finally:
            if traced:
                sys.settrace(None)

    def _line(self, code: Any, line: int) -> Any:
        if code.co_filename.startswith(_ROOMS):
            self.reached.add((code.co_filename, line))
        return self._monitoring.DISABLE  # a line is told of once

    def _trace(self, frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_ROOMS):
            return None
        self.reached.add((frame.f_code.co_filename, frame.f_lineno))
        return self._trace
