"""What is to be done at the end of a watched run is done once: where the `with` is left, or else before the process ends."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence

__all__ = ["Act", "Ending"]

Act = tuple[str, Callable[[str | None], None]]
"""What to say where it fails, and what to do, given the class name of the exception that ended the training, None for none."""


class Ending:
    """The acts that end a run, in order. Where one fails the others are done all the same.

    Args:
        acts: What is to be done.
        warn: Tells the user a sentence.

    Attributes:
        over: Whether it has begun.
    """

    def __init__(self, acts: Sequence[Act], warn: Callable[[str], None]) -> None:
        self.over = False
        self._acts, self._warn, self._owner = acts, warn, os.getpid()
        atexit.register(self._before_exit)

    def now(self, ended_by: str | None) -> None:
        """Do what has not been done."""
        if self.over:
            return
        self.over = True
        atexit.unregister(self._before_exit)
        for trouble, act in self._acts:
            try:
                act(ended_by)
            except Exception as error:
                what = f"{trouble} ({type(error).__name__}: {error})"
                self._warn(f"{what}; `stabkit analyze` reads what was recorded all the same")
        self._acts = ()

    def _before_exit(self) -> None:
        """A `with` that was entered by hand and never left: while all modules are still there."""
        if os.getpid() == self._owner:
            self.now(None)
