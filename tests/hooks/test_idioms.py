"""Every correct loop of the corpus: invisible, true, and blamed for nothing."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from truth import assert_blameless, assert_true

import stabkit
from tests.idioms import IDIOMS, run_idiom

WAYS: dict[str, dict[str, Any]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "adopted": {"foreach": True, "adopt": True},
}


@functools.cache
def unwatched(name: str, implementation: str) -> Any:
    return run_idiom(name, None, **WAYS[implementation]).result


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", IDIOMS)
def test_an_idiom_is_unchanged_recorded_truly_and_blamed_for_nothing(tmp_path: Path, name: str, way: str) -> None:
    loop = run_idiom(name, tmp_path / "run", **WAYS[way])
    assert loop.result == unwatched(name, "foreach" if way == "adopted" else way)
    run = stabkit.load(tmp_path / "run")
    assert not [e for e in run.events if e["event"] == "fault"]
    assert_true(run, loop)
    assert_blameless(run)
