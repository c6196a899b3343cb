"""Every function of the recorders and the writers raises in turn, and the training does not notice.

The functions are found, not listed: one that is added tomorrow is broken tomorrow.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import tempfile
import textwrap
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

import stabkit
from stabkit.errors import StabkitError
from stabkit.hooks import dispatch
from tests.breaking.injection import broken, functions_of
from tests.breaking.training import STEPS, patchable, train

PLACES = ("stabkit.hooks", "stabkit.runlog.writer", "stabkit.runlog.append", "stabkit.runlog.claim", "stabkit.dashboard.writer",
          "stabkit.dashboard.events", "stabkit.outbox", "stabkit.outputs", "stabkit.ending", "stabkit.watch")  # fmt: skip
GUARD = {
    "stabkit.hooks.dispatch.Nesting.__enter__": "adds one",
    "stabkit.hooks.dispatch.Nesting.__exit__": "takes one off",
    "stabkit.hooks.dispatch.Nesting.entered": "reads one",
    "stabkit.hooks.clip._materialised": "runs the user's own generator: what that raises is the user's",
    "stabkit.hooks.dispatch.attach": "called by the guard in watch",
    "stabkit.hooks.dispatch.detach": "what puts torch back",
    "stabkit.hooks.dispatch._restore": "what puts torch back",
    "stabkit.hooks.dispatch.remembered": "appends one to a list",
    "stabkit.watch._CallableModule.__call__": "is watch",
    "stabkit.watch.watch": "the `with` itself, which refuses what makes no sense",
    "stabkit.watch._check_model": "refuses what makes no sense",
    "stabkit.hooks.optimizer.unwrap": "asked of the user's arguments, too",
    "stabkit.watch._warn": "how the user is told",
    "stabkit.hooks.monitor.Monitor.fault": "how the log is told",
    "stabkit.ending.Ending.now": "a try around each act",
    "stabkit.watch.Watch.__init__": "keeps three things",
    "stabkit.watch.Watch.log": "called by the user's loop",
    "stabkit.watch.Watch.mark": "called by the user's loop",
    "stabkit.watch.Watch._safely": "the guard of these two",
    "stabkit.watch._plain": "asked of the user's numbers",
}
"""What stands between the user's frames and the guard; all else is called from inside it."""

OPTIONS: dict[bool, dict[str, Any]] = {False: {"adopt": True, "budget": 1.0}, True: {"forward": True}}
"""How a training is watched, that without a scaler and that with one: together they come by nearly everything."""

FUNCTIONS = {name: function for place in PLACES for name, function in functions_of(place).items()}
ENTRIES = [n for n in FUNCTIONS if n.startswith("stabkit.hooks.monitor.Monitor._on_") or n.endswith(".install")]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    left, dispatch._monitors = dispatch._monitors, ()
    dispatch._restore()  # one failure must not hide what the next function does
    assert not left, "a monitor is still there"


@cache
def unwatched(scaled: bool) -> Any:
    return train(scaled=scaled).bits


@cache
def calls(scaled: bool) -> dict[str, int]:
    """How often each function is called by the training, watched."""
    counts = dict.fromkeys(FUNCTIONS, 0)

    def count(name: str) -> Any:
        def when(call: int) -> bool:
            counts[name] = call
            return False

        return when

    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for name, function in FUNCTIONS.items():
            stack.enter_context(broken(function, count(name)))
        assert train(Path(folder) / "run", scaled=scaled, **OPTIONS[scaled]).bits == unwatched(scaled)
    return counts


def only_a_try(function: FunctionType) -> bool:
    """Whether all that a function does stands in one `try` that catches every Exception: then it cannot raise."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    body = [node for node in tree.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    if len(body) != 1 or not isinstance(body[0], ast.Try):
        return False
    return any(isinstance(h.type, ast.Name) and h.type.id in ("Exception", "BaseException") for h in body[0].handlers)


def attack(name: str, when: str, scaled: bool, logdir: Path) -> None:
    """Break one function, and see that nothing but the log knows."""
    count, before = calls(scaled)[name], patchable()
    moments = {"always": lambda call: True, "once": lambda call: call == count // 4 + 1, "late": lambda call: call > count // 2}
    with broken(FUNCTIONS[name], moments[when]) as raised:
        outcome = train(logdir, scaled=scaled, **OPTIONS[scaled])
    assert outcome.bits == unwatched(scaled)
    assert patchable() == before, "torch is as it was"
    if not raised:
        return
    told = outcome.warned
    with contextlib.suppress(StabkitError):
        run = stabkit.load(logdir)
        told = [*told, *(str(event) for event in run.events)]
        if when == "once":
            assert len(run.steps) >= STEPS - 3 or not len(run.steps), run.steps
    assert any("injected into" in text for text in told), "somebody must be told"


def attackable(name: str) -> bool:
    return name not in GUARD and not only_a_try(FUNCTIONS[name])


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_point_that_always_raises(name: str, tmp_path: Path) -> None:
    for scaled in (False, True):
        if calls(scaled)[name]:
            attack(name, "always", scaled, tmp_path / str(scaled))
            return
    pytest.skip("this training does not come by")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["always", "once", "late"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_function_that_raises(name: str, when: str, tmp_path: Path) -> None:
    if not attackable(name):
        pytest.skip("is the guard itself, or cannot raise")
    scaled = bool(zlib.crc32(name.encode()) % 2)
    scaled = scaled if calls(scaled)[name] else not scaled
    if not calls(scaled)[name]:
        pytest.skip("this training does not come by")
    attack(name, when, scaled, tmp_path / "run")


def test_the_guard_is_small_and_exists() -> None:
    """Nobody may make a test pass by calling a function a guard: the list is of twenty at most, each with its reason."""
    assert set(GUARD) <= set(FUNCTIONS) and len(GUARD) <= 20
