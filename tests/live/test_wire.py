"""A finding comes out of the pipe as it went in."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.live.wire import END, pack, unpack

texts = some.text(max_size=20) | some.just("file \udce4\n\x1b[31m")
steps = some.integers(0, 10**12)
numbers = some.floats()
evidence = some.builds(
    Evidence, metric=texts, observed=numbers, expected=some.none() | numbers, step=some.none() | steps,
    tensor=some.none() | texts, note=texts,
)  # fmt: skip


def findings(consequences: Any) -> Any:
    return some.builds(
        Finding, rule=texts, name=texts, severity=some.sampled_from(Severity), message=texts, first_step=steps,
        last_step=steps, event_step=some.none() | steps, last_good_step=some.none() | steps,
        state=some.sampled_from(State), tensors=some.lists(texts, max_size=3).map(tuple),
        evidence=some.lists(evidence, max_size=2).map(tuple), advice=texts,
        remedy=some.dictionaries(texts, numbers, max_size=2),
        confidence=some.none() | some.tuples(numbers, numbers, numbers),
        batches=some.dictionaries(steps, some.lists(texts, max_size=2).map(tuple), max_size=2),
        consequences=consequences,
    )  # fmt: skip


@given(findings(some.lists(findings(some.just(())), max_size=2).map(tuple)))
def test_a_finding_comes_back_as_it_was(finding: Finding) -> None:
    line = pack("finding", finding)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    kind, again = unpack(line[:-1]) or ("", None)
    assert kind == "finding"
    assert repr(again) == repr(finding)  # NaN is not equal to itself; its text is


def test_numpys_numbers_come_back_as_pythons() -> None:
    proof = Evidence(metric="loss", observed=np.float64(0.1), step=np.int64(7))
    about = {"rule": "SK1", "name": "n", "severity": Severity.INFO, "message": "m"}
    finding = Finding(**about, first_step=np.int64(7), last_step=8, evidence=(proof,))
    _, again = unpack(pack("finding", finding).strip()) or ("", None)
    assert again == finding and type(again.evidence[0].step) is int


def test_what_others_print_is_not_ours() -> None:
    assert unpack(b"a library says hello") is None and unpack(END) is None
    assert unpack(pack("trouble", "x\ny").strip()) == ("trouble", "x\ny")
    assert unpack(pack("done").strip()) == ("done", None)
