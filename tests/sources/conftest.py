"""Fixtures of the tests of foreign logs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file below tmp_path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture(scope="session")
def real_logs() -> Path:
    """A folder of logs that other projects published, in the formats their own tools wrote."""
    places = [Path(place) for place in (os.environ.get("STABKIT_REAL_LOGS", ""),) if place]
    places += [place for parent in ROOT.parents[:2] for place in (parent / "reallogs", *sorted(parent.glob("*/reallogs")))]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        pytest.skip("there are no real logs here: STABKIT_REAL_LOGS names their folder")
    return found
