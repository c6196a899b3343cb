"""Shared by all tests: one thread where bits are compared, and no stray `hooks` package."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.browser import browser

__all__ = ["browser", "pytest_configure", "root"]

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Tests begun in the background ignore Ctrl-C, and so would everything they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def root() -> Path:
    """The repository's root."""
    return ROOT
