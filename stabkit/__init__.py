"""stabkit tells why a PyTorch training run becomes unstable: which tensor, which step, how sure, and what to change.

    with stabkit.watch(model, optimizer, "runs/exp1"):
        ...                                             # your loop, unchanged

    $ stabkit analyze runs/exp1

Names are resolved on first use, so that `import stabkit` needs no torch and takes milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout `stabkit.hooks` and `stabkit.analyzers` live beside this folder (setup.cfg, package_dir). Installed, they are
# inside it and this does nothing; uninstalled, or with a wheel shadowed by the working directory, it makes them importable.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.cfg").is_file() and (_checkout / "hooks" / "__init__.py").is_file():
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    from stabkit.analyzers import analyze
    from stabkit.finding import Diagnosis, Finding, Severity
    from stabkit.notebook import plot
    from stabkit.runlog import RunLog
    from stabkit.sources import load
    from stabkit.watch import watch

_HOME = {
    "watch": "stabkit.watch",
    "load": "stabkit.sources",
    "RunLog": "stabkit.runlog",
    "analyze": "stabkit.analyzers",
    "plot": "stabkit.notebook",
    "Diagnosis": "stabkit.finding",
    "Finding": "stabkit.finding",
    "Severity": "stabkit.finding",
}

__all__ = ["Diagnosis", "Finding", "RunLog", "Severity", "__version__", "analyze", "load", "plot", "watch"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stabkit' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # also where a submodule of the same name (`stabkit.watch`) would otherwise shadow it
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
