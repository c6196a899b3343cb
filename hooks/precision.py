"""Notes the autocast dtype: by the time backward runs autocast is off again, so it is seen where it is entered."""

from __future__ import annotations

import functools
from typing import Any

import torch

from stabkit.hooks.dispatch import Undo, listening, notify, patch_attribute

__all__ = ["install"]


def install() -> list[Undo]:
    """Patch `torch.autocast.__enter__`: event "autocast" with the dtype's name, where it is enabled."""

    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        def enter(self: Any) -> Any:
            if not torch.compiler.is_compiling() and listening() and getattr(self, "_enabled", False):
                notify("autocast", str(getattr(self, "fast_dtype", "")).removeprefix("torch."))
            return original(self)

        return enter

    undo = patch_attribute(torch.autocast, "__enter__", wrap)
    return [] if undo is None else [undo]
