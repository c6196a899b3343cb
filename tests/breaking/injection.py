"""Makes any function of stabkit raise, whoever holds a reference to it: what is replaced is its code."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

__all__ = ["Injected", "broken", "functions_of"]


class Injected(RuntimeError):
    """The fault that was put there."""


_live: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], Any]] = {}


def functions_of(package: str) -> dict[str, FunctionType]:
    """Every function and method that the modules of a package define, by "module.Class.name": found, so that a new one is too.

    Functions made inside another one are not among them: a wrapper around a function of torch is the frame that the user's call
    runs in, and what it calls is here.
    """
    root = _module(package)
    below = pkgutil.walk_packages(root.__path__, package + ".") if hasattr(root, "__path__") else []
    names = [package, *(info.name for info in below)]
    found: dict[str, FunctionType] = {}
    for name in names:
        try:
            module = _module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("stabkit"):
                raise
            continue  # it needs a part that is not installed here, as kernels need Triton, and nobody comes by
        for key, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == name:
                for attribute, inner in vars(value).items():
                    _add(f"{name}.{key}.{attribute}", inner, name, found)
            else:
                _add(f"{name}.{key}", value, name, found)
    return found


def _module(name: str) -> Any:
    importlib.import_module(name)
    return sys.modules[name]  # `stabkit.watch` is a function to whoever asks the package


def _add(place: str, value: Any, module: str, found: dict[str, FunctionType]) -> None:
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, functools.cached_property):
        value = value.func
    value = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value
    own = isinstance(value, FunctionType) and value.__module__ == module and "<locals>" not in value.__qualname__
    if own and not value.__code__.co_filename.startswith("<"):  # a dataclass's own are made of text
        found[place] = value


def _code(free: int, key: str) -> CodeType:
    """Code with so many free variables that asks `_live` what to do."""
    names = [f"free{i}" for i in range(free)]
    text = f"def outer({', '.join(names)}):\n def fault(*args, **kwargs):\n  {', '.join(names) or 'None'}\n"
    text += f"  return __import__({__name__!r}, fromlist=['x'])._live[{key!r}](args, kwargs)\n return fault"
    space: dict[str, Any] = {}
    exec(text, space)
    fault: FunctionType = space["outer"](*names)
    return fault.__code__


@contextmanager
def broken(
    function: FunctionType, when: Callable[[int], bool] = lambda call: True, error: Any = Injected, instead: Any = None
) -> Iterator[list[int]]:
    """Inside, the function raises at those of its calls for which `when` holds, counted from 1; elsewhere it does its work.

    Where `error` is None, it returns `instead` there and raises nothing.

    Yields:
        A list of the calls at which it raised.
    """
    key, raised, calls = f"{function.__module__}.{function.__qualname__}", [], [0]  # type: ignore[var-annotated]
    original = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    original.__kwdefaults__ = function.__kwdefaults__

    def act(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls[0] += 1
        if when(calls[0]):
            raised.append(calls[0])
            if error is None:
                return instead
            raise error(f"injected into {key}")
        return original(*args, **kwargs)

    _live[key] = act
    before, function.__code__ = function.__code__, _code(len(function.__code__.co_freevars), key)
    try:
        yield raised
    finally:
        function.__code__ = before
        del _live[key]
