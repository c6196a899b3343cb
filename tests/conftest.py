"""Shared by all tests: one thread where bits are compared, and no stray `hooks` package."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import browser

__all__ = ["browser", "root"]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def root() -> Path:
    """The repository's root."""
    return ROOT
