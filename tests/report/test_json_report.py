"""The JSON document: the schema as written down, and nothing that is not JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stabkit.finding import Evidence, Severity, State, Status
from stabkit.report.json import Unreadable, document, render


def test_the_whole_schema(make: Any) -> None:
    seen = Evidence(metric="loss", observed=math.nan, expected=-math.inf, step=8, tensor="w", note="median")
    led = make.finding(rule="SK202", name="loss-divergence", severity=Severity.ERROR, message="gone")
    found = make.finding(
        event_step=8, last_good_step=6, state=State.RECOVERED, tensors=("w", "b"), evidence=(seen,), advice="less",
        remedy={"lr_factor": 0.5},
        confidence=(0.9, 0.8, 0.95), batches={7: ("part-3", "part-4")}, consequences=(led,),
    )  # fmt: skip
    run = make.diagnosis(make.outcome("SK201", "loss-spike", Status.FOUND, "", found), notes=("torn",))
    plain = {
        "first_step": 7, "last_step": 9, "event_step": None, "last_good_step": None, "state": "ongoing", "tensors": [],
        "evidence": [], "advice": "", "remedy": {}, "confidence": None, "batches": {}, "consequences": [],
    }  # fmt: skip
    evidence = {"metric": "loss", "observed": "nan", "expected": "-inf", "step": 8, "tensor": "w", "note": "median"}
    finding = {
        "severity": "warning", "message": "loss rose to 9", "first_step": 7, "last_step": 9, "event_step": 8,
        "last_good_step": 6, "state": "recovered", "tensors": ["w", "b"], "evidence": [evidence], "advice": "less",
        "remedy": {"lr_factor": 0.5},
        "confidence": [0.9, 0.8, 0.95], "batches": {"7": ["part-3", "part-4"]},
        "consequences": [{"rule": "SK202", "name": "loss-divergence", "severity": "error", "message": "gone", **plain}],
    }  # fmt: skip
    outcome = {
        "rule": "SK201", "name": "loss-spike", "status": "found", "reason": "", "occasion": True, "findings": [finding]
    }  # fmt: skip
    expected = {
        "schema": 1,
        "runs": [
            {"path": "runs/a", "source": "stabkit", "steps": 400, "notes": ["torn"], "outcomes": [outcome]},
            {"path": "runs/b", "error": "there is no runs/b"},
        ],
    }
    assert json.loads(render([run, Unreadable("runs/b", "there is no runs/b")])) == expected


def test_the_keys_keep_their_order(make: Any) -> None:
    run = document([make.diagnosis(make.outcome("SK1", "x", Status.NOT_APPLICABLE, "why"))])["runs"][0]
    assert list(run) == ["path", "source", "steps", "notes", "outcomes"]
    assert list(run["outcomes"][0]) == ["rule", "name", "status", "reason", "occasion", "findings"]
    assert run["outcomes"][0]["status"] == "not-applicable"


def test_numbers_of_numpy_are_numbers(make: Any) -> None:
    seen = Evidence(metric="loss", observed=np.float32(0.5), expected=np.float64("inf"), step=np.int64(3))  # type: ignore[arg-type]
    run = make.diagnosis(make.outcome("SK1", "x", Status.FOUND, "", make.finding(first_step=np.int64(2), evidence=(seen,))))
    found = json.loads(render([run]))["runs"][0]["outcomes"][0]["findings"][0]
    assert (found["first_step"], found["evidence"][0]["observed"], found["evidence"][0]["expected"]) == (2, 0.5, "inf")
    assert found["evidence"][0]["step"] == 3


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.floats())
def test_any_text_and_number_survives_and_the_document_stays_plain(make: Any, text: str, number: float) -> None:
    found = make.finding(message=text, tensors=(text,), evidence=(Evidence(metric=text, observed=number),))
    written = render([make.diagnosis(make.outcome("SK1", text, Status.FOUND, text, found), path=text)])
    assert all(" " <= c <= "~" or c == "\n" for c in written)
    run = json.loads(written, parse_constant=lambda name: 1 / 0)["runs"][0]
    back = run["outcomes"][0]["findings"][0]
    assert (run["path"], back["message"], back["tensors"]) == (text, text, [text])
    observed = float(back["evidence"][0]["observed"])
    assert observed == number or (math.isnan(observed) and math.isnan(number))


def test_half_a_character_of_a_file_name_is_spelled_out() -> None:
    assert json.loads(render([Unreadable("a\udc80", "b")]))["runs"] == [{"path": "a\\udc80", "error": "b"}]
