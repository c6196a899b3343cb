"""Numbers in messages are written as people write them, whatever the rule: 130, not 1.3e+02."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabkit.analyzers import analyze
from stabkit.analyzers.base import in_plain_digits
from stabkit.finding import Finding
from tests.cases import load_case


@given(st.floats(1e-9, 1e12), st.integers(1, 4))
def test_the_number_stays_the_same(value: float, digits: int) -> None:
    text = f"{value:.{digits}g}"
    plain = in_plain_digits(f"moved {text} times as far")
    assert float(plain.split()[1]) == float(text)
    assert float(text) >= 1e6 or "e+" not in plain


@pytest.mark.parametrize(
    "text", ["", "layer.1e+02.weight", "a1e+02", "blocks.0", "1e-05", "3.4e+38", "1e+02e", "at step 100: 0.5 % of 12"]
)
def test_what_is_no_such_number_is_left_alone(text: str) -> None:
    assert in_plain_digits(text) == text


def test_a_sentence() -> None:
    assert in_plain_digits("step 7 moved w 1.3e+02 times: 2e+02, 1.25e+05.") == "step 7 moved w 130 times: 200, 125000."


@pytest.mark.parametrize("case", ["rate_jump", "diverging", "growing_until_nan"])
def test_no_finding_of_a_real_run_says_e_plus(case: str) -> None:
    def texts(finding: Finding) -> str:
        own = f"{finding.message} {finding.advice} {' '.join(item.note for item in finding.evidence)}"
        return own + " ".join(texts(each) for each in finding.consequences)

    found = analyze(load_case(case)).findings
    assert found
    assert not [text for text in map(texts, found) if re.search(r"e\+0[1-5]", text)]
