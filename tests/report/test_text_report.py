"""The report on the terminal: exact text on a console of a known width."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stabkit.finding import Evidence, Severity, State, Status
from stabkit.report.text import report, summary, tally

WARMUP = {
    "rule": "SK101",
    "name": "missing-warmup",
    "severity": Severity.ERROR,
    "message": "update of 59 times the weights of blocks.0.qkv.weight at step 1",
    "first_step": 1,
    "last_step": 37,
    "event_step": 12,
    "last_good_step": 0,
    "tensors": ("blocks.0.qkv.weight", "head.weight"),
    "evidence": (
        Evidence(metric="update_ratio", observed=59.0331, expected=0.5, step=1, tensor="blocks.0.qkv.weight", note="limit"),
        Evidence(metric="loss", observed=math.inf, expected=4.2, step=12),
    ),
    "advice": "Warm up over 2,000 steps, or lower the peak rate from 0.003 to 0.0003.",
    "confidence": (0.93, 0.85, 0.97),
}


@pytest.fixture
def broken(make: Any) -> Any:
    nan = make.finding(rule="SK301", name="nonfinite-value", message="3 NaN in head.weight", first_step=380, last_step=400)
    led = make.finding(rule="SK202", name="loss-divergence", message="the loss did not return", consequences=(nan,))
    warmup = make.finding(**WARMUP, consequences=(led,))
    spike = make.finding(state=State.RECOVERED, last_good_step=6)
    return make.diagnosis(
        make.outcome("SK101", "missing-warmup", Status.FOUND, "", warmup),
        make.outcome("SK102", "oversized-update"),
        make.outcome("SK201", "loss-spike", Status.FOUND, "", spike),
        make.outcome("SK303", "loss-scale-collapse", Status.NOT_APPLICABLE, "the log has no loss_scale"),
        make.outcome("SK304", "overflow-forecast", Status.NOT_APPLICABLE, "the log has no loss_scale"),
        make.outcome("SK504", "eps-dominated-update", Status.FAILED, "KeyError: 'eps'"),
        notes=("2 attempts in this directory; the last one is judged",),
    )


def test_a_broken_run_at_80_columns(draw: Any, broken: Any) -> None:
    assert draw(report, broken) == (
        """\
runs/a: 1 error, 1 warning in 400 steps — missing-warmup at step 1 (blocks.0.qkv.weight)

error  SK101 missing-warmup  steps 1–37, worst at 12, ongoing at the end
  update of 59 times the weights of blocks.0.qkv.weight at step 1

  quantity      step  observed  expected  note
  update_ratio     1     59.03       0.5  limit
  loss            12       inf       4.2

  where    blocks.0.qkv.weight, head.weight
  restart  from the beginning: no step before it was good
  try      Warm up over 2,000 steps, or lower the peak rate from 0.003 to
           0.0003.
  trust    right in 93 % of the cases it was measured on (85 % to 97 %)
  led to   SK202 loss-divergence at step 7: the loss did not return
             SK301 nonfinite-value at step 380: 3 NaN in head.weight

warning  SK201 loss-spike  steps 7–9, recovered
  loss rose to 9
  restart  from a checkpoint at or before step 6

Could not look
  SK303 loss-scale-collapse, SK304 overflow-forecast: the log has no loss_scale

Failed: a fault of stabkit, not of your run. Please report it
  SK504 eps-dominated-update: KeyError: 'eps'

Notes on the log
  - 2 attempts in this directory; the last one is judged

How SK101 decides and when it is wrong: stabkit explain SK101
"""
    )


@pytest.mark.parametrize("width", [40, 80, 120])
def test_only_the_summary_may_be_wider_than_the_terminal(draw: Any, broken: Any, width: int) -> None:
    assert all(len(line) <= width for line in draw(report, broken, width=width).splitlines()[1:])


def test_a_terminal_gets_colours_and_the_same_words(draw: Any, broken: Any) -> None:
    coloured = draw(report, broken, colours=True, width=120)
    assert "\x1b[1;31merror" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == draw(report, broken, width=120)


@pytest.mark.parametrize("place", [3, 5])
def test_an_error_among_the_consequences_is_always_shown(draw: Any, make: Any, place: int) -> None:
    led = [make.finding(rule=f"SK50{i}", name="x", message=f"consequence {i}") for i in range(6)]
    deep = make.finding(rule="SK301", name="nonfinite-value", severity=Severity.ERROR, message="3 NaN in head.weight")
    for worst in (replace(led[place], severity=Severity.ERROR), replace(led[place], consequences=(deep,))):
        of_all = (*led[:place], worst, *led[place + 1 :])
        text = draw(report, make.diagnosis(make.outcome("SK1", "x", Status.FOUND, "", make.finding(consequences=of_all))))
        assert [i for i in range(6) if f"consequence {i}" in text] == [0, 1, 2, place]
        assert ("3 NaN in head.weight" in text) == bool(worst.consequences)
        assert "and 2 more" in text


def test_the_batches_of_a_finding_are_named(draw: Any, make: Any) -> None:
    seen = make.finding(batches={7: ("shard3/12", "shard3/13"), 9: ("\x1b[31m",)})
    text = draw(report, make.diagnosis(make.outcome("SK201", "loss-spike", Status.FOUND, "", seen)))
    assert "  batch    step 7: shard3/12, shard3/13; step 9: \\x1b[31m\n" in text
    assert "  batch" not in draw(report, make.diagnosis(make.outcome("SK201", "x", Status.FOUND, "", make.finding())))


def test_a_worst_step_before_the_first_is_where_it_began(draw: Any, make: Any) -> None:
    """SK302 fires when growth has lasted, and tells the step at which it began."""
    grown = make.finding(first_step=41, last_step=150, event_step=1)
    text = draw(report, make.diagnosis(make.outcome("SK302", "x", Status.FOUND, "", grown)))
    assert "steps 41–150, begun at 1, ongoing at the end" in text


def test_a_healthy_run_is_one_line(draw: Any, make: Any) -> None:
    healthy = make.diagnosis(*(make.outcome(f"SK{i}", "x") for i in range(101, 111)))
    assert draw(report, healthy) == "runs/a: clear — 10 of 10 rules looked, 400 steps\n"


def test_clear_is_not_said_of_what_could_not_be_looked_at(make: Any) -> None:
    clear, blind = make.outcome("SK101", "x"), make.outcome("SK102", "y", Status.NOT_APPLICABLE, "why")
    failed = make.outcome("SK103", "z", Status.FAILED, "why")
    some = make.diagnosis(clear, blind, failed, notes=("run.json is damaged",))
    assert summary(some).plain == (
        "runs/a: clear — 1 of 3 rules looked; 2 could not (see below), 400 steps; see the notes on the log"
    )
    assert summary(make.diagnosis(blind, failed)).plain == "runs/a: not judged — none of 2 rules looked, 400 steps"
    assert "clear" not in summary(make.diagnosis(blind)).plain
    assert summary(make.diagnosis(clear), left_out=9).plain == "runs/a: clear — 1 of 1 rule looked; 9 not asked, 400 steps"


def test_what_is_not_about_the_run_is_no_gap(draw: Any, make: Any) -> None:
    clear = make.outcome("SK101", "x")
    elsewhere = [replace(make.outcome(f"SK40{i}", "y", Status.NOT_APPLICABLE, "no scaler"), occasion=False) for i in (1, 2)]
    text = draw(report, make.diagnosis(clear, *elsewhere))
    assert text.startswith("runs/a: clear — 1 of 1 rule looked; 2 not about this run, 400 steps\n")
    assert "Could not look" not in text and text.endswith("Not about this run\n  SK401, SK402\n")


def test_a_rule_that_could_not_look_at_one_of_two_optimizers_has_not_looked(make: Any) -> None:
    twice = make.diagnosis(make.outcome("SK101", "x"), make.outcome("SK101", "x", Status.NOT_APPLICABLE, "SGD"))
    assert summary(twice).plain == "runs/a: not judged — none of 1 rule looked, 400 steps"


def test_the_worst_comes_first(draw: Any, make: Any) -> None:
    found = [make.finding(rule=f"SK{int(s)}", severity=s, message=f"a {s}") for s in Severity]
    text = draw(report, make.diagnosis(*(make.outcome(f.rule, "x", Status.FOUND, "", f) for f in found)))
    assert text.startswith("runs/a: 1 error, 1 warning, 1 info in 400 steps")
    assert text.index("a error") < text.index("a warning") < text.index("a info")


def test_of_many_findings_of_one_rule_three_are_shown_and_the_rest_counted(draw: Any, make: Any) -> None:
    found = [make.finding(first_step=step, message=f"spike no. {step}") for step in range(10, 120, 10)]
    text = draw(report, make.diagnosis(make.outcome("SK201", "loss-spike", Status.FOUND, "", *found)))
    assert text.startswith("runs/a: 11 warnings in 400 steps")
    assert text.count("spike no.") == 3
    assert "and 8 more findings of loss-spike: at steps 40, 50, 60, 70, 80, 90 and 2 more" in text


def test_the_same_advice_and_trust_are_given_once_a_rule(draw: Any, make: Any) -> None:
    about = {"advice": "Lower the rate.", "confidence": (0.9, 0.8, 1.0)}
    found = [make.finding(first_step=step, **about) for step in (1, 2)] + [make.finding(first_step=3, advice="Clip.")]
    text = draw(report, make.diagnosis(make.outcome("SK201", "loss-spike", Status.FOUND, "", *found)))
    assert [line.split()[1:] for line in text.splitlines() if line.startswith("  try")] == [
        ["Lower", "the", "rate."], ["as", "above"], ["Clip."],
    ]  # fmt: skip
    assert text.count("  trust    right in 90 % of the cases") == 1


def test_a_reason_too_long_for_the_line_goes_on_the_next(draw: Any, make: Any) -> None:
    blind = make.outcome("SK303", "loss-scale-collapse", Status.NOT_APPLICABLE, "the log has no loss_scale")
    text = draw(report, make.diagnosis(blind), width=40)
    assert text.endswith("Could not look\n  SK303 loss-scale-collapse\n    the log has no loss_scale\n")


def test_two_tensors_in_the_evidence_are_both_named(draw: Any, make: Any) -> None:
    seen = tuple(Evidence(metric="grad_norm", observed=i, step=i, tensor=f"t{i}") for i in (1, 2))
    text = draw(
        report, make.diagnosis(make.outcome("SK1", "x", Status.FOUND, "", make.finding(tensors=("t1",), evidence=seen)))
    )
    assert "  quantity   step  observed  tensor\n  grad_norm     1         1  t1\n  grad_norm     2         2  t2\n" in text


def test_the_tally_of_several_runs(draw: Any, make: Any) -> None:
    ill = make.diagnosis(make.outcome("SK201", "loss-spike", Status.FOUND, "", make.finding()))
    assert draw(tally, [ill, make.diagnosis()], 3) == "\n3 paths: findings in 1, nothing found in 1, 1 could not be read\n"
    assert draw(tally, [ill, ill], 2) == "\n2 paths: findings in 2, nothing found in 0\n"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.characters()), st.integers(20, 130))
def test_nothing_from_the_log_is_obeyed_by_the_terminal(draw: Any, make: Any, text: str, width: int) -> None:
    seen = Evidence(metric=text, observed=1.0, tensor=text, note=text)
    inner = make.finding(rule=text, name=text, message=text)
    names = {"rule": text, "name": text, "message": text, "advice": text, "tensors": (text, "w")}
    found = make.finding(**names, evidence=(seen,), consequences=(inner,))
    outcomes = (make.outcome(text, text, Status.FOUND, "", found), make.outcome("SK1", text, Status.FAILED, text))
    coloured = draw(report, make.diagnosis(*outcomes, path=text, notes=(text,)), width=width, colours=True)
    assert all(c.isprintable() or c == "\n" for c in re.sub(r"\x1b\[[0-9;]*m", "", coloured))


def test_markup_and_emoji_codes_in_names_are_text(draw: Any, make: Any) -> None:
    found = make.finding(message="[red]x[/red] :smile: \x1b[31m\n", tensors=("[/bold]",))
    text = draw(report, make.diagnosis(make.outcome("SK1", "x", Status.FOUND, "", found)), colours=True)
    assert "[red]x[/red] :smile: \\x1b[31m\\n" in text
    assert "[/bold]" in text


def test_information_asks_for_no_restart(draw: Any, make: Any) -> None:
    """A gradient spike that clipping absorbed: nothing is to be done, so no checkpoint is named."""
    for severity, asks in ((Severity.INFO, False), (Severity.WARNING, True)):
        seen = make.finding(severity=severity, last_good_step=6)
        text = draw(report, make.diagnosis(make.outcome("SK201", "loss-spike", Status.FOUND, "", seen)))
        assert ("restart" in text) is asks


def test_only_a_rule_of_the_catalogue_has_a_page(draw: Any, make: Any) -> None:
    own = make.outcome("MY101", "cold-layer", Status.FOUND, "", make.finding(rule="MY101", severity=Severity.ERROR))
    spike = make.outcome("SK201", "loss-spike", Status.FOUND, "", make.finding())
    assert "stabkit explain" not in draw(report, make.diagnosis(own))
    assert "stabkit explain SK201" in draw(report, make.diagnosis(own, spike))
