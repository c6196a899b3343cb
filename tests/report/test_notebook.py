"""`run.plot()`: what a notebook is given, and that it draws there, twice, without a network."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from html_page import Page
from test_html_report import HOSTILE, renamed

import stabkit
from stabkit.errors import MissingMetricError, UsageError
from stabkit.runlog import RunLog
from tests.browser import Browser, request
from tests.cases import load_case


class Frames(HTMLParser):
    """The frames of a notebook's cell, and any other element."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.frames: list[dict[str, str]] = []
        self.others: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "iframe":
            self.frames.append({name: value or "" for name, value in attrs})
        else:
            self.others.append(tag)


def shown(run: RunLog, *metrics: str, tensor: str | None = None) -> tuple[dict[str, str], Page]:
    """The frame that a notebook is given, and the page inside."""
    cell = Frames(run.plot(*metrics, tensor=tensor)._repr_html_())
    (frame,) = cell.frames
    assert not cell.others, "nothing of it lies in the notebook itself"
    return frame, Page(frame["srcdoc"])


def test_a_run_is_shown_as_the_report_in_a_frame_that_reaches_nothing() -> None:
    run = load_case("growing_until_nan")
    frame, page = shown(run)
    assert frame["sandbox"] == "allow-scripts" and "src" not in frame
    assert "SK302" in page.text and page.figures["timeline"]["lines"]
    assert repr(run.plot()).startswith("growing_until_nan: ") and "<" not in repr(run.plot())


def test_quantities_are_shown_as_curves() -> None:
    run = load_case("healthy")
    _, page = shown(run, "loss", "lr")
    assert [figure["title"] for figure in page.figures] == ["loss", "lr"]
    _, page = shown(run, "update_ratio", tensor="head.weight")
    (figure,) = page.figures
    assert figure["title"] == "update_ratio of head.weight"
    assert len(figure["runs"][0]["line"]["steps"]) == len(run.steps), "without the weights at entry"


@pytest.mark.parametrize("name", [HOSTILE, "</iframe><script>alert(1)</script>", '" onload="alert(1)', "&quot;>"])
def test_a_name_stays_text(name: str) -> None:
    run = replace(renamed(name), path=name)
    for metrics, tensor in (((), None), (("grad_norm",), name)):
        frame, page = shown(run, *metrics, tensor=tensor)
        assert set(frame) == {"sandbox", "style", "title", "srcdoc"}
        assert "img" not in page.tags and not any(attribute.startswith("on") for _, attribute, _ in page.attributes)


def test_a_run_alone_in_a_cell_is_a_line() -> None:
    assert repr(load_case("healthy")) == "RunLog('healthy': 250 steps, 29 tensors, recorded by stabkit)"
    assert repr(RunLog()) == "RunLog('': nothing recorded, recorded by memory)"


def test_errors_say_what_there_is() -> None:
    run = load_case("healthy")
    with pytest.raises(MissingMetricError, match="loss_scale"):
        run.plot("loss_scale")
    with pytest.raises(UsageError, match=r"head\.weight"):
        run.plot("update_ratio", tensor="haed.weight")
    with pytest.raises(UsageError, match="name the quantity of head"):
        run.plot(tensor="head.weight")


def test_the_page_can_be_kept(tmp_path: Path) -> None:
    load_case("healthy").plot("loss").save(tmp_path / "loss.html")
    assert (tmp_path / "loss.html").read_text().startswith("<!DOCTYPE html>")


def test_plotting_needs_no_torch(root: Path) -> None:
    code = "import sys, stabkit; stabkit.plot; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    assert "plot" in dir(stabkit)


@pytest.mark.slow
def test_two_of_them_in_one_notebook_are_drawn_offline(browser: Browser, tmp_path: Path) -> None:
    """A page with two cells, as an exported notebook has them."""
    run = load_case("growing_until_nan")
    cells = (run.plot(), run.plot("loss", "grad_norm"), run.plot())
    (tmp_path / "notebook.html").write_text("".join(f"<div>{cell._repr_html_()}</div>" for cell in cells), encoding="utf-8")
    browser.command("Network.enable")
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.command("Network.emulateNetworkConditions", **offline)
    browser.open((tmp_path / "notebook.html").as_uri())
    drawn = []
    for place in range(3):
        request(f"{browser._session}/frame", {"id": place})
        assert browser.run("return document.documentElement.dataset.drawn;") == "yes"
        drawn.append(browser.run('return document.querySelectorAll("path.curve").length;'))
        request(f"{browser._session}/frame", {"id": None})
    assert drawn[0] == drawn[2] > 3 and drawn[1] == 2
    assert [entry["message"] for entry in browser.log()] == []
    browser.screenshot(tmp_path / "notebook.png")
