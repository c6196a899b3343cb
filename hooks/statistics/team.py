"""Torch's own OpenMP threads, for work of ours.

After each of its parallel regions torch's worker threads wait for the next one by spinning, for some milliseconds. A thread of
ours would have to share a core with one of them and gain nothing (measured: two such threads were no faster than one). So the
same team is asked, through the entry point that compilers use, in the very library torch has loaded, and always in the size
torch uses: a team of another size would make the runtime end and start threads.

The library is looked up once. Where torch is built otherwise, there is none, and `_one_pass` starts a thread of its own.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

__all__ = ["parallel"]


def _parallel() -> int:
    try:
        home = Path(torch.__file__).resolve().parent
        loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
        ours = [path for path in sorted(loaded) if Path(path).parent.parent == home or Path(path).parent.name == "torch.libs"]
        library = ctypes.CDLL(ours[0], mode=os.RTLD_NOLOAD) if len(ours) == 1 else None
        function = library.GOMP_parallel if library else None  # void (*)(void (*)(void *), void *, unsigned, unsigned)
        return ctypes.cast(function, ctypes.c_void_p).value or 0 if function else 0
    except (OSError, AttributeError, IndexError):  # another system, or another build of torch
        return 0


parallel: int = _parallel()
"""Address of `GOMP_parallel` in the OpenMP runtime that torch uses; 0 where there is none to be found."""
