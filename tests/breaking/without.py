"""Trains where some modules cannot be imported; tells what came of it. argv: the log, the exception, the modules."""

from __future__ import annotations

import builtins
import json
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any


class Broken(MetaPathFinder):
    """Raises where one of the modules, or what is inside it, is looked for."""

    def __init__(self, names: list[str], error: type[Exception]) -> None:
        self._names, self._error = names, error

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if any(name == one or name.startswith(one + ".") for one in self._names):
            raise self._error(f"{name} is broken here")
        return None


def main() -> None:
    logdir, error, names = Path(sys.argv[1]), getattr(builtins, sys.argv[2]), sys.argv[3:]
    import torch

    torch.set_num_threads(1)
    sys.meta_path.insert(0, Broken(names, error))
    from tests.breaking.training import train

    watched = train(logdir, scaled=True)
    print(json.dumps({"same": watched.bits == train(scaled=True).bits, "warned": watched.warned,
                      "imported": [name for name in names if name in sys.modules]}))  # fmt: skip


if __name__ == "__main__":
    main()
