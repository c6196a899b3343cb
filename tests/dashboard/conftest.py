"""Shared by the tests of the dashboards."""

from __future__ import annotations

from pathlib import Path

import pytest

from stabkit.dashboard.writer import DashboardWriter


@pytest.fixture
def writer(tmp_path: Path) -> DashboardWriter:
    """A writer into the test's own directory."""
    return DashboardWriter(tmp_path)
