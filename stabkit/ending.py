"""What is to be done at the end of a watched run is done once: where the `with` is left, or else before the process ends."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable

__all__ = ["Ending"]


class Ending:
    """The acts that end a run, in order. Where one fails the others are done all the same.

    Args:
        warn: Tells the user a sentence.

    Attributes:
        over: Whether it has begun.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.over = False
        self._warn, self._owner = warn, os.getpid()
        self._acts: list[tuple[str, Callable[[str | None], None]]] = []
        atexit.register(self._before_exit)

    def add(self, trouble: str, act: Callable[[str | None], None]) -> None:
        """One more act, which is given the class name of the exception that ended the training, None where none did.

        Args:
            trouble: What to say where it fails.
            act: What to do.
        """
        self._acts.append((trouble, act))

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
        self._acts = []

    def _before_exit(self) -> None:
        """A `with` that was entered by hand and never left: while all modules are still there."""
        if os.getpid() == self._owner:
            self.now(None)
