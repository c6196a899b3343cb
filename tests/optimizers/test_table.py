"""docs/optimizers.md says what the runs recorded."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.optimizers import table
from tests.optimizers.training import Entry
from tests.optimizers.zoo import FRAMEWORKS, HANDMADE, TORCH


def committed() -> dict[str, list[str]]:
    """The cells of every line of the page, by its optimizer."""
    lines = [line for line in table.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {name: cells for name, *cells in rows if name != "optimizer"}


def assert_told(entries: Mapping[str, Entry]) -> None:
    """All but the errors must be the same; those depend on the processor."""
    said = committed()
    for name, row in table.rows_of(entries).items():
        *cells, error, count = said[name]
        assert (*cells, count) == row.cells, name
        assert row.error <= 10 * float(error) and row.error < 1e-3, name


@pytest.mark.parametrize("entries", [TORCH, HANDMADE], ids=["torch", "handmade"])
def test_the_page_says_what_was_recorded(entries: Mapping[str, Entry]) -> None:
    assert_told(entries)


@pytest.mark.slow
def test_the_page_says_what_was_recorded_of_other_packages() -> None:
    if not any(table.available(entry) for entry in FRAMEWORKS.values()):
        pytest.skip("no other optimizers are installed: pip install -e '.[frameworks]'")
    assert_told(FRAMEWORKS)


def test_the_page_has_no_other_rows() -> None:
    names = [name.partition(" (")[0] if name in TORCH else name for name in (*TORCH, *HANDMADE, *FRAMEWORKS)]
    assert {name.partition(":")[0] for name in committed()} == {name.partition(":")[0] for name in names}
    assert table.PAGE.read_text(encoding="utf-8").startswith(table.TEXT)
