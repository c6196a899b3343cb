"""The line under a page of results: by which command it was made, when, on what."""

from __future__ import annotations

import os
import platform
import sys
from datetime import date
from pathlib import Path

import torch

__all__ = ["heading"]


def heading(module: str) -> str:
    """Command, date, versions and machine of the program that runs now.

    Args:
        module: What `python -m` was given.
    """
    command = " ".join(["python -m", module, *sys.argv[1:]])
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"`{command}` on {date.today()}, {versions},\n{_machine()}, {torch.get_num_threads()} thread."


def _machine() -> str:
    cpus = Path("/proc/cpuinfo")
    names = [line for line in cpus.read_text().splitlines() if line.startswith("model name")] if cpus.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{platform.system()}, {os.cpu_count()} cores {name or platform.machine()}"
