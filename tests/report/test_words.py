"""How numbers, counts and foreign text are written."""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabkit.report.encoding import speak_any_encoding
from stabkit.report.words import count, duration, listed, number, printable, size, span


@given(st.text(st.characters()))
def test_printable_text_has_no_character_that_a_terminal_obeys(text: str) -> None:
    assert printable(text).isprintable()


def test_ordinary_text_stays_as_it_is() -> None:
    assert printable("blocks.0.µ [x] 漢") == "blocks.0.µ [x] 漢"
    assert printable("a\u202eb\n\x1b") == "a\\u202eb\\n\\x1b"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), (0.0, "0"), (3.0, "3"), (59.0331, "59.03"), (0.5, "0.5"), (1234.56, "1235"), (400_000.0, "400000"),
        (1e6, "1e+06"), (3e-5, "3e-05"), (-2.5, "-2.5"), (float("nan"), "nan"), (float("-inf"), "-inf"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_counts_spans_and_lists() -> None:
    assert (count(1, "step"), count(12_000, "step"), count(0, "rule")) == ("1 step", "12,000 steps", "0 rules")
    assert (span(5, 5), span(5, 37)) == ("step 5", "steps 5–37")
    assert (listed(["a", "b"], 2), listed(["a", "b", "c"], 2)) == ("a, b", "a, b and 1 more")


def test_sizes_and_durations() -> None:
    assert [size(n) for n in (12, 12_345, 10**9, 10**16)] == ["12 bytes", "12.3 kB", "1 GB", "10000 TB"]
    assert [duration(s) for s in (0.13, 4, 720, 12_000)] == ["130 ms", "4 s", "12 min", "3 h 20 min"]


def test_an_encoding_without_dashes_gets_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", None)
    speak_any_encoding()
    print("clear — β 漢", flush=True)
    print("nowhere", file=sys.stderr)
    assert raw.getvalue() == b"clear - beta \\u6f22\n"
