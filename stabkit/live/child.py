"""The process beside the training that judges its log: it takes neither the training's interpreter lock nor torch.

It ends when the training asks it to (a line on standard input), or with it, however that died.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

from stabkit.beside import give_way
from stabkit.finding import Finding
from stabkit.live.follow import Follower, keep_looking
from stabkit.live.wire import END, pack

__all__ = ["main"]

_SHARE = 0.25
"""Of one core, and only of what nobody else wants: the process is nice."""
_PARENT_IS_LOOKED_FOR = 2.0
"""Seconds between two looks at whether the training is still there."""


def main() -> None:
    """Judge the log of argv[1], saying nothing of what was known at argv[2], for the process argv[3]."""
    path, since, parent = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training
    give_way(10)
    ending = threading.Event()
    threading.Thread(target=_heed, args=(ending,), daemon=True).start()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _say("ready")
    keep_looking(Follower(path, since=since), _tell, ending, _SHARE, _complain)
    _say("done")
    os._exit(0)


def _heed(ending: threading.Event) -> None:
    """Wait for the order to end; where the pipe breaks, nobody listens any more."""
    while True:
        order = os.read(0, 64)
        if not order:
            os._exit(0)
        if order.endswith(END):
            ending.set()


def _end_with(parent: int) -> None:
    """A process forked from the training holds the pipe open when the training is gone."""
    while os.getppid() == parent:
        time.sleep(_PARENT_IS_LOOKED_FOR)
    os._exit(0)


def _say(kind: str, content: Any = None) -> None:
    line = pack(kind, content)
    try:
        while line:
            line = line[os.write(1, line) :]
    except OSError:
        os._exit(0)


def _tell(finding: Finding) -> None:
    _say("finding", finding)


def _complain(error: Exception) -> None:
    _say("trouble", f"{type(error).__name__}: {error}")
