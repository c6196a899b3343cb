"""Findings for machines that read along: GitHub annotations and SARIF; and the command line around the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from html_page import Page
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample import write_run

from stabkit.cli import commands
from stabkit.finding import Severity, Status
from stabkit.report import github, sarif
from stabkit.report.json import Unreadable


@pytest.fixture
def ill(make: Any) -> Any:
    nan = make.finding(rule="SK301", name="nonfinite-value", severity=Severity.ERROR, message="NaN in head", first_step=380)
    spike = make.finding(advice="Lower the rate by 50 %.", consequences=(nan,))
    note = make.finding(rule="SK501", name="vanishing-gradient", severity=Severity.INFO)
    return make.diagnosis(
        make.outcome("SK201", "loss-spike", Status.FOUND, "", spike),
        make.outcome("SK202", "loss-divergence"),
        make.outcome("SK303", "loss-scale-collapse", Status.NOT_APPLICABLE, "the log has no loss_scale"),
        make.outcome("SK501", "vanishing-gradient", Status.FOUND, "", note),
    )


def test_github_annotations(ill: Any) -> None:
    assert github.render([ill, Unreadable("b", "no such file")]) == (
        "runs/a: 1 warning, 1 info in 400 steps — loss-spike at step 7\n"
        "::warning title=SK201 loss-spike::runs/a, step 7: loss rose to 9. Try: Lower the rate by 50 %25. "
        "Led to SK301 nonfinite-value at step 380.\n"
        "::notice title=SK501 vanishing-gradient::runs/a, step 7: loss rose to 9.\n"
        "::error title=stabkit::b: no such file"
    )


@given(st.text(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_of_a_log_can_give_github_a_command(make: Any, text: str) -> None:
    for hostile in (text, f"a\n::set-env name=X::{text}", f"::add-mask::{text}"):
        found = make.finding(name=hostile, message=hostile, advice=hostile)
        diagnosis = make.diagnosis(make.outcome("X", hostile, Status.FOUND, "", found), path=hostile)
        lines = github.render([diagnosis, Unreadable(hostile, hostile)]).split("\n")
        assert len(lines) == 3 and "\r" not in "".join(lines)
        assert not lines[0].lstrip().startswith("::")
        assert lines[1].startswith("::warning title=") and lines[2].startswith("::error title=stabkit::")


def test_sarif_has_the_findings_and_what_could_not_be_looked_at(ill: Any) -> None:
    document = json.loads(sarif.render([ill, Unreadable("b", "no such file")]))
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    assert [(r["ruleId"], r["level"]) for r in run["results"]] == [("SK201", "warning"), ("SK501", "note")]
    assert run["results"][0]["message"]["text"] == "Step 7: loss rose to 9. Try: Lower the rate by 50 %."
    assert run["results"][0]["properties"]["consequences"][0]["rule"] == "SK301"
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert rules == ["SK201", "SK202", "SK303", "SK501"]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    told = [notification["message"]["text"] for notification in invocation["toolExecutionNotifications"]]
    assert told == ["SK303 loss-scale-collapse could not look: the log has no loss_scale", "b: no such file"]


def test_sarif_says_the_same_of_the_same_finding_and_names_files_as_addresses(ill: Any, make: Any) -> None:
    one, two = (json.loads(sarif.render([ill]))["runs"][0]["results"] for _ in range(2))
    assert one == two and one[0]["partialFingerprints"] != one[1]["partialFingerprints"]
    odd = make.diagnosis(make.outcome("SK201", "x", Status.FOUND, "", make.finding()), path="runs/a b#é\udc80")
    (result,) = json.loads(sarif.render([odd]))["runs"][0]["results"]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert re.fullmatch(r"[A-Za-z0-9/%._~\\-]+", uri)


def call(*words: str) -> Any:
    return CliRunner().invoke(commands, list(words))


def test_a_page_is_written_or_printed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=40)
    target = tmp_path / "out.html"
    done = call("report", str(run), "-o", str(target))
    assert done.exit_code == 0, done.output
    assert done.output == f"{target}: {len(target.read_bytes()) / 1e3:,.0f} kB\n"
    assert str(run) in Page(target.read_text(encoding="utf-8")).text
    assert call("report", str(run), "-o", "-").output == target.read_text(encoding="utf-8")
    assert call("analyze", str(run), "--format", "html").output == target.read_text(encoding="utf-8")


def test_a_page_is_about_one_run_and_never_half_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=40)
    target = tmp_path / "out.html"
    target.write_text("an older page")
    assert call("report", str(tmp_path / "nothing"), "-o", str(target)).exit_code == 3
    assert target.read_text() == "an older page"
    done = call("analyze", str(run), str(run), "--format", "html")
    assert done.exit_code == 2 and "<html" not in done.output


@pytest.mark.parametrize("format", ["github", "sarif"])
def test_formats_for_ci_keep_the_exit_code(tmp_path: Path, format: str) -> None:
    run = write_run(tmp_path / "run", steps=40)
    expected = call("analyze", str(run)).exit_code
    done = call("analyze", str(run), "--format", format)
    assert done.exit_code == expected
    assert ("2.1.0" in done.output) == (format == "sarif")
    assert call("analyze", str(run), "--follow", "--format", format).exit_code == 2
