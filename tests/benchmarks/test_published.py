"""Published tools: what they print is read rightly, and the real ones are run where they are installed."""

from __future__ import annotations

import csv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.score import published as module
from benchmarks.score.alarms import Alarm
from benchmarks.score.bootstrap import Resampled
from benchmarks.score.corpus import Case, Event
from benchmarks.score.curves import Curves
from benchmarks.score.others import published as shown
from benchmarks.score.published import TOOLS, Said, ask, published, write_csv
from benchmarks.score.tally import Seen

READ = {tool.name: tool.read for tool in TOOLS}


def curves(loss: Any, norm: Any = None) -> Curves:
    n, nothing = len(loss), np.full((len(loss), 1), np.nan)
    norm = np.full(n, np.nan) if norm is None else norm
    return Curves("x", np.arange(1, n + 1), np.asarray(loss, dtype=float), norm, nothing, nothing)


def falling(n: int = 300) -> np.ndarray[Any, Any]:
    return 3 * np.exp(-np.arange(n) / 200) * np.exp(0.02 * np.random.default_rng(0).standard_normal(n))


def broken() -> np.ndarray[Any, Any]:
    loss = falling()
    loss[150:] = np.nan
    return loss


def test_what_losslint_prints() -> None:
    def found(severity: str, **details: Any) -> dict[str, Any]:
        return {"check": "x", "severity": severity, "message": "", "details": details}

    told = {"findings": [found("error", steps=[301, 302]), found("warning", ratio=2.0), found("info", steps=[5])]}
    assert READ["losslint"](told) == Said(True, (301, 302))
    assert READ["losslint"]({"findings": [found("info", steps=[5])]}) == Said(False)


def test_what_runmedic_prints() -> None:
    spikes = {"severity": "warning", "step": 150.0, "evidence": ["2 sudden spike(s)", "spike steps: 149, 150 ..."]}
    flat = {"severity": "critical", "step": None, "evidence": []}
    note = {"severity": "info", "step": 3.0, "evidence": []}
    assert READ["runmedic"]([{"findings": [spikes, flat, note]}]) == Said(True, (149, 150))
    assert READ["runmedic"]([{"findings": [note]}]) == Said(False)


def test_what_trainproof_prints() -> None:
    def found(level: str, evidence: str) -> dict[str, Any]:
        return {"reports": [{"findings": [{"level": level, "evidence": evidence}]}]}

    assert READ["trainproof"](found("FAIL", "Steps: [301.0, 302.0]...")) == Said(True, (301, 302))
    assert READ["trainproof"](found("FAIL", "301 of 600 norms; first at step 300. Weights")) == Said(True, (300,))
    assert READ["trainproof"](found("WARN", "Max gn 3.00 > 10x median (0.1)")) == Said(True)
    assert READ["trainproof"](found("PASS", "300 steps analyzed.")) == Said(False)


def test_the_file_they_read_leaves_out_what_was_not_recorded(tmp_path: Path) -> None:
    write_csv(curves([1.0, float("nan")]), tmp_path / "loss.csv")
    write_csv(curves([1.0, 2.0], np.array([0.5, np.inf])), tmp_path / "both.csv")
    rows = [list(csv.reader((tmp_path / name).open())) for name in ("loss.csv", "both.csv")]
    assert rows[0] == [["step", "loss"], ["1", "1.0"], ["2", "nan"]]
    assert rows[1] == [["step", "loss", "grad_norm"], ["1", "1.0", "0.5"], ["2", "2.0", "inf"]]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_the_real_tool_tells_a_broken_run_from_a_healthy_one(tool: Any, tmp_path: Path) -> None:
    try:
        version(tool.name)
    except PackageNotFoundError:
        pytest.skip(f"{tool.name} is not installed: pip install -e '.[benchmarks]'")
    write_csv(curves(falling()), tmp_path / "healthy.csv")
    write_csv(curves(broken()), tmp_path / "broken.csv")
    assert ask(tool, tmp_path / "healthy.csv") == Said(False)
    said = ask(tool, tmp_path / "broken.csv")
    assert said.alarmed and said.steps[0] == 151


def test_a_tool_that_is_missing_or_breaks_is_told_and_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Event(151, 300)
    runs = [
        Seen(Case(id="s", path=Path(), events=(event,)), (Alarm(step=151, rule="SK301"),), curves(broken())),
        Seen(Case(id="h", path=Path(), healthy=True), (), curves(falling())),
    ]
    absent = module.Tool("no-such-package", ("{}",), READ["losslint"])
    silent = module.Tool("numpy", ("-c", "pass"), READ["losslint"])  # installed, and answers nothing
    monkeypatch.setattr(module, "TOOLS", (absent, silent))
    monkeypatch.setattr(module, "_command", lambda name: module.sys.executable)
    told = published(runs, Resampled(2, 50), 1)
    own = told[f"stabkit {version('stabkit')}"]
    assert (own["sick_alarmed"]["value"], own["healthy_alarmed"]["value"], own["H8"]["detected"]["value"]) == (1, 0, 1)
    assert told["no-such-package"]["why_not"].startswith("not installed")
    other = told[f"numpy {np.__version__}"]
    assert (other["unread"], other["sick_alarmed"]["value"], other["H50"]["detected"]["value"]) == (2, 0, 0)
    page = shown({"published": told})
    assert "- no-such-package: not installed" in page and "could not read 2 of the runs" in page
