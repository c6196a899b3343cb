"""A comparison as people and machines meet it: exact text at three widths, JSON, a page, exit codes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pairs import DATA
from rich.console import Console

from stabkit.cli import commands
from stabkit.compare import compare
from stabkit.compare.html import page
from stabkit.compare.json import render
from stabkit.compare.text import report
from stabkit.report.escape import printable
from stabkit.runlog import RunLog
from tests.cases import load_case

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))
from html_page import Page, long_run

HOSTILE = "<img src=x onerror=alert(1)>"


def usual() -> RunLog:
    return replace(load_case("usual", DATA), path="runs/a")


def other(name: str) -> RunLog:
    return replace(load_case(name, DATA), path="runs/b")


def drawn(a: RunLog, b: RunLog, width: int) -> str:
    file = io.StringIO()
    report(compare(a, b), a, b, Console(file=file, width=width, color_system=None))
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 100, 200])
@pytest.mark.parametrize("name", ["rate", "seed", "seed and rate"])
def test_the_text_at_a_width(name: str, width: int) -> None:
    printed = drawn(usual(), other(name), width)
    assert printed == (Path(__file__).parent / "text" / f"{name.replace(' ', '_')}_{width}.txt").read_text(encoding="utf-8")
    assert all(len(line) <= width for line in printed.splitlines()[3:]), "only the first three lines may be wider"


def test_the_mark_stands_under_the_step_at_which_they_part() -> None:
    lines = drawn(usual(), other("rate"), 100).splitlines()
    bars, mark = (next(line for line in lines if line.startswith("  B ")), next(line for line in lines if "▲" in line))
    begin = min(bars.index(bar) for bar in "▁▂▃▄▅▆▇█" if bar in bars)
    width = sum(bar in "▁▂▃▄▅▆▇█" for bar in bars)
    assert mark.index("▲") - begin == 79 * width // 160


def test_a_loss_that_is_no_number_is_said_to_be_none() -> None:
    assert "The loss of B is no number in steps 90–160." in drawn(usual(), other("nan"), 100)


def test_the_json_is_stable() -> None:
    found = json.loads(render(compare(usual(), other("nan"))))
    assert list(found) == [
        "schema", "a", "b", "common", "first", "last", "verdict", "split", "partings", "looked_at", "settings", "notes",
    ]  # fmt: skip
    assert found["schema"] == 1 and found["verdict"] == "parted"
    assert list(found["split"]) == [
        "step", "same_until", "stage", "same", "tensor_step", "tensors", "compared", "size", "settings",
    ]  # fmt: skip
    assert list(found["partings"][0]) == ["metric", "tensor", "step", "until", "a", "b", "times", "p"]
    assert (found["partings"][0]["b"], found["partings"][0]["times"]) == ("nan", "inf")


def test_the_page_stands_alone_and_holds_it_all() -> None:
    found = compare(usual(), other("rate"))
    made = Page(page(found, usual(), other("rate")))
    assert "They part at step 80, first in the updates" in made.text and "lr 0.01 0.01 to 0.3, last 0.3 80" in made.text
    pictures = made.figures
    assert [figure["title"] for figure in pictures[:3]] == ["Loss", "Gradient norm", "Learning rate"]
    assert all(figure["mark"] == 80 and len(figure["runs"]) == 2 for figure in pictures)
    assert pictures[3]["tensor"] in {tensor.name for tensor in usual().tensors}
    for tag, name, value in made.attributes:
        assert name not in ("src", "style", "srcset", "action") and not name.startswith("on"), (tag, name, value)
    assert "link" not in made.tags and "iframe" not in made.tags
    assert [value for _, name, value in made.attributes if name == "content" and value.startswith("default-src 'none';")]


@pytest.mark.parametrize("name", [HOSTILE, "</script><script>alert(1)</script>", "n" * 5000, "a\x1b[31m\x00b\u202ec"])
def test_a_name_stays_text(name: str) -> None:
    def renamed(run: RunLog) -> RunLog:
        infos = tuple(replace(tensor, name=f"{name}.{i}") for i, tensor in enumerate(run.tensors))
        return replace(run, path=name, streams=(replace(run.stream, tensors=infos),), facts={name: name})

    a, b = renamed(usual()), replace(renamed(other("rate")), facts={name: "other"})
    odd, plain = Page(page(compare(a, b), a, b)), Page(page(compare(usual(), other("rate")), usual(), other("rate")))
    assert set(odd.tags) <= set(plain.tags) and len(odd.scripts) == len(plain.scripts)
    assert any(printable(name)[:20] in figure["title"] for figure in odd.figures)
    assert all(character.isprintable() or character == "\n" for character in drawn(a, b, 100))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The losses of two runs as another tool would have logged them, and a run of ours."""
    folder = tmp_path_factory.mktemp("logs")
    for name in ("usual", "seed", "order"):
        series = load_case(name, DATA).series("loss")
        lines = [f"{step},{value:.6f}" for step, value in zip(series.steps, series.values, strict=True)]
        (folder / f"{name}.csv").write_text("\n".join(["step,train/ce", *lines]) + "\n")
    return folder


@pytest.fixture
def invoke(logs: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(logs)

    def invoke(*args: Any) -> Result:
        result = CliRunner().invoke(commands, ["compare", *map(str, args)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return invoke


def test_exit_codes_tell_whether_they_part(invoke: Any, logs: Path) -> None:
    loss = ("--map", "loss=train/ce")
    (logs / "again.csv").write_text((logs / "usual.csv").read_text())
    assert invoke("usual.csv", "again.csv", *loss).exit_code == 0
    assert invoke("usual.csv", "seed.csv", *loss).exit_code == 0
    parted = invoke("usual.csv", "order.csv", *loss)
    assert parted.exit_code == 1 and "they part at step 60, first in the loss" in parted.stdout
    assert invoke("usual.csv").exit_code == 2
    same = invoke("usual.csv", "usual.csv")
    assert same.exit_code == 2 and "the same run twice. Two attempts of one run: --attempts 0 1" in same.stderr
    gone = invoke("usual.csv", "nowhere")
    assert gone.exit_code == 3 and "nowhere" in gone.stderr


def test_the_page_is_written_besides(invoke: Any, logs: Path) -> None:
    done = invoke("usual.csv", "order.csv", "--map", "loss=train/ce", "--html", "page.html", "--format", "json")
    assert json.loads(done.stdout)["split"]["step"] == 60 and "page.html: " in done.stderr
    assert (logs / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_in_a_process_of_its_own_without_torch(logs: Path, root: Path) -> None:
    code = "import sys; from stabkit.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "compare", "usual.csv", "seed.csv", "--map", "loss=train/ce"]
    done = subprocess.run(command, cwd=logs, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "they differ, and nowhere beyond noise, 160 steps in common" in done.stdout


def test_long_logs_are_compared_in_seconds() -> None:
    a, b = long_run(5_000, 60), long_run(5_000, 60, seed=1)
    began = time.process_time()
    found = compare(a, b)
    assert time.process_time() - began < 4, "was 0.7 s when this was written"
    assert (found.common, str(found.verdict)) == (5_000, "noise")


@pytest.mark.slow
def test_two_runs_of_300_tensors_by_30000_steps_are_compared() -> None:
    a, b = long_run(30_000, 300), long_run(30_000, 300, seed=1)
    began = time.process_time()
    found = compare(a, b)
    print(f"{time.process_time() - began:.1f} s")
    assert time.process_time() - began < 120, "was 17 s when this was written"
    assert (found.common, str(found.verdict)) == (30_000, "noise")
