"""What every process of ours beside a user's does first."""

from __future__ import annotations

import os

__all__ = ["give_way"]


def give_way(niceness: int) -> None:
    """Let others go first, and where memory runs out, be the process that is ended.

    Args:
        niceness: What is added to this process's nice value; 19 asks only for what nobody else wants.
    """
    if hasattr(os, "nice"):
        os.nice(niceness)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:  # not Linux, or not allowed
        pass
