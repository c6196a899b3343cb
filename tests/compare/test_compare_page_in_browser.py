"""The page on two runs in a real browser, opened from disk without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pairs import DATA

from stabkit.compare import compare
from stabkit.compare.html import page, pictures
from tests.browser import Browser
from tests.cases import load_case

pytestmark = pytest.mark.slow


def test_the_curves_of_both_are_drawn_with_the_step_marked(browser: Browser, tmp_path: Path) -> None:
    a, b = (replace(load_case(name, DATA), path=f"<img src=x>{name}") for name in ("usual", "nan"))
    found = compare(a, b)
    (tmp_path / "page.html").write_text(page(found, a, b), encoding="utf-8")
    browser.command("Network.enable")
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.command("Network.emulateNetworkConditions", **offline)
    browser.open((tmp_path / "page.html").as_uri())
    assert browser.run("return document.documentElement.dataset.drawn;") == "yes"
    drawn = pictures(found, a, b)
    assert browser.run('return document.querySelectorAll("figure.pair svg path.curve").length;') == 2 * len(drawn)
    assert browser.run('return document.querySelectorAll("figure.pair .edge").length;') == len(drawn)
    assert browser.run('return document.querySelectorAll("figure.pair .broke").length;') >= 1, "a loss that is NaN is shown"
    assert browser.run('return document.querySelectorAll("img").length;') == 0
    assert "step 90" in browser.texts()
    assert [entry["message"] for entry in browser.log()] == []
    browser.screenshot(tmp_path / "page.png")
