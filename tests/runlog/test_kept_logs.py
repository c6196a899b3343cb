"""The log of every released version is read for ever, to the last digit. How to keep one: keep_log.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import stabkit
from stabkit.runlog.format import SCHEMA_VERSION
from tests.runlog.keep_log import LOGS, told

KEPT = sorted(path for path in LOGS.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: path.name)
def test_a_log_of_a_released_version_says_what_it_said(folder: Path) -> None:
    expected, found = json.loads((folder / "told.json").read_text()), told(stabkit.load(folder / "log"))
    for name, value in expected.items():
        if isinstance(value, dict):
            assert {key: found[name].get(key) for key in value} == value, name  # a later version may know more
        else:
            assert found[name] == value, name
    assert not [o for o in stabkit.analyze(stabkit.load(folder / "log")).outcomes if str(o.status) == "failed"]


def test_there_is_a_log_of_the_format_that_is_written_now() -> None:
    assert any(path.name.startswith(f"schema{SCHEMA_VERSION}-") for path in KEPT)
