"""The compiled extension, where there is one, and whether it can find tensors by itself."""

from __future__ import annotations

from importlib import import_module
from struct import Struct
from typing import Any

import numpy as np
import torch

__all__ = ["ROW", "ROW_DTYPE", "finder", "native"]

ROW = Struct("6Q8sq6d")
"""`Row` of _sums.h."""
ROW_DTYPE = np.dtype(
    [(name, "<u8") for name in ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "before")]
    + [("kinds", "V8"), ("size", "<i8")]
    + [(name, "<f8") for name in ("step_size", "decay", "bias", "eps", "sign", "beta1")]
)
"""The same as an array of them."""


def _load() -> Any:
    try:
        module = import_module("stabkit.hooks.statistics._one_pass")
    except Exception:  # not built, or built for something else: whatever that raises
        return None
    stale = ROW.size != module.ROW_BYTES or not hasattr(module, "same")  # a build of another version
    return None if stale else module


def _bound(module: Any) -> Any:
    """The extension, if torch tells C where its tensors lie: from 2.10 on."""
    table = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    try:
        return module if module and table and module.bind(table, torch.Tensor, torch.nn.Parameter) else None
    except (TypeError, ValueError):  # a table of another kind
        return None


native: Any = _load()
"""The extension module, or None where it was not built."""
finder: Any = _bound(native)
"""The same where it can find tensors, else None: Python then looks at them one by one."""
