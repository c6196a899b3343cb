"""The Stability tab in a real browser, in a real TensorBoard, on the log of a real training run that broke."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from broken_run import train
from long_log import HOSTILE, LONG
from test_browser import tensorboard

from tests.browser import Browser, wait_for

pytestmark = pytest.mark.slow

PICTURE = """
const canvas = document.querySelector(".map canvas");
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
let sum = 0;
for (let i = 0; i < pixels.length; i += 4) sum = (sum * 31 + 7 * pixels[i] + 3 * pixels[i + 1] + pixels[i + 2]) % 4294967291;
return [canvas.width, canvas.height, sum];
"""
OFFERED = "return [...document.getElementById(args[0]).options].some((option) => option.text.startsWith(args[1]));"
CHOOSE = """
const select = document.getElementById(args[0]);
select.value = [...select.options].find((option) => option.text.startsWith(args[1])).value;
select.dispatchEvent(new Event("change"));
"""
CLICK = """
const rows = [...document.querySelectorAll(".names > *")], row = rows.findIndex((each) => each.title === args[0]);
const canvas = document.querySelector(".map canvas"), box = canvas.getBoundingClientRect();
const clientX = box.left + args[1] * box.width, clientY = box.top + (row + 0.5) * box.height / rows.length;
canvas.dispatchEvent(new MouseEvent("click", { clientX, clientY, bubbles: true }));
"""
PICK = "[...document.querySelectorAll('.runs button')].find((button) => button.title === args[0]).click();"
NAMES = 'return [...document.querySelectorAll(".names > *")].map((row) => row.title);'
HEADLINE = 'const h = document.querySelector(".verdict h1"); return h && h.textContent;'
STEPS = """
const told = document.querySelector(".verdict .run .quiet");
return told ? Number(told.textContent.replace(/[^0-9]/g, "")) : 0;
"""
READY = 'return [".map canvas", ".verdict h1", "#timeline path.curve"].every((each) => document.querySelector(each));'


class Tab:
    """The tab's frame, seen from TensorBoard's page around it."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser = browser
        browser.log()
        browser.open(f"{address}#stabkit")
        assert wait_for(lambda: browser.run("return Boolean(document.querySelector('iframe[src*=stabkit]'));"))
        assert wait_for(lambda: self.run(READY)), browser.log()

    def run(self, script: str, *args: Any) -> Any:
        """What a function with this body returns; `document` and `args` are known to it."""
        frame = "const { contentDocument: document } = window.document.querySelector('iframe[src*=stabkit]'), args = arguments;"
        return self.browser.run(f"{frame} {script}", *args)

    def choose(self, select: str, text: str) -> None:
        """Choose what begins so. Of the quantities of the map one comes first, the others a moment later."""
        assert wait_for(lambda: self.run(OFFERED, select, text))
        self.run(CHOOSE, select, text)

    def complaints(self) -> list[str]:
        """What went wrong, TensorBoard's own complaints about graphics left out."""
        bad = [entry for entry in self.browser.log() if entry["level"] == "SEVERE" or "stabkit/" in entry["message"]]
        return [entry["message"] for entry in bad if "willReadFrequently" not in entry["message"]]

    def texts(self) -> str:
        return str(self.run("return document.body.textContent;"))


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that breaks at step 140, under a hostile name, and a shorter one beside it that does not."""
    root = tmp_path_factory.mktemp("logs")
    train(root / HOSTILE)
    train(root / "well", steps=100)
    return root


@contextmanager
def opened(logdir: Path, browser: Browser, folder: Path) -> Iterator[Tab]:
    with tensorboard(logdir, folder / "tensorboard.log") as address:
        yield Tab(browser, address)


def test_timeline_heatmap_and_findings_of_a_broken_run(logdir: Path, browser: Browser, tmp_path: Path) -> None:
    with opened(logdir, browser, tmp_path) as tab:
        assert "140" in tab.run(HEADLINE)
        assert tab.run('return document.querySelectorAll("#timeline path.curve").length;') == 3
        assert tab.run('return document.querySelectorAll("#timeline .badge").length;') >= 2
        assert tab.run('return document.querySelectorAll(".card").length;') >= 2
        assert tab.run('return document.querySelectorAll(".plots svg").length;') >= 2
        assert "first mover" in tab.texts() and "What was checked" in tab.texts()

        first = tab.run(PICTURE)
        tab.choose("map-quantity", "Gradient norm")
        second = tab.run(PICTURE)
        tab.choose("map-scale", "value")
        third = tab.run(PICTURE)
        assert len({tuple(picture) for picture in (first, second, third)}) == 3, "quantity and colours change the picture"

        unfolded = tab.run(NAMES)
        assert unfolded.index("first.weight") < unfolded.index("blocks.0.0.weight") < unfolded.index("head.weight")
        tab.run('[...document.querySelectorAll(".names button")].find((each) => each.title === "blocks.1").click();')
        gone = {f"blocks.1.{part}" for part in ("0.weight", "0.bias", "1.weight", "1.bias")}
        assert set(unfolded) - set(tab.run(NAMES)) == gone
        tab.run('document.getElementById("map-fold").click();')
        assert "first.weight" not in tab.run(NAMES) and "first" in tab.run(NAMES)
        tab.run('document.getElementById("map-fold").click();')
        assert tab.run(NAMES) == unfolded
        tab.browser.screenshot(tmp_path / "tab.png")
        assert not tab.complaints()


def test_a_click_shows_the_tensor_and_the_rule(logdir: Path, browser: Browser, tmp_path: Path) -> None:
    with opened(logdir, browser, tmp_path) as tab:
        tab.run(CLICK, "blocks.1.1.weight", 139.5 / 199)
        assert wait_for(lambda: tab.run('return document.querySelectorAll(".panel .page h3").length;'))
        panel = tab.run('return document.querySelector(".panel").textContent;')
        assert panel.index("blocks.1.1.weight") < panel.index("SK206 update-ratio-jump") < panel.index("What it reports")
        assert "8 × 8" in panel and "step 140" in panel
        assert tab.run('return document.querySelectorAll(".panel .plots path.curve").length;') >= 5
        tab.run('document.querySelector(".panel .close").click();')
        assert tab.run('return document.querySelector(".panel").hidden;')
        tab.run('document.querySelector(".card .link").click();')
        assert wait_for(lambda: tab.run('return document.querySelectorAll(".panel .page h3").length;'))
        assert not tab.complaints()


def test_hostile_names_stay_text_everywhere(logdir: Path, browser: Browser, tmp_path: Path) -> None:
    with opened(logdir, browser, tmp_path) as tab:
        for name in (HOSTILE, LONG.replace(".", "_")):
            tab.run(CLICK, f"{name}.weight", 139.5 / 199)
            assert wait_for(lambda name=name: name[:40] in tab.run('return document.querySelector(".panel").textContent;'))
            assert wait_for(lambda: tab.run('return document.querySelectorAll(".panel .page").length;'))
        tab.run("for (const box of document.querySelectorAll('.runs input:not(:disabled)')) box.click();")
        tab.run("for (const details of document.querySelectorAll('details')) details.open = true;")
        assert wait_for(lambda: tab.run('return !document.getElementById("compared").hidden;'))
        assert HOSTILE in tab.texts()
        assert tab.run('return document.querySelectorAll("img, iframe, [onerror]").length;') == 0
        width = tab.run('const main = document.querySelector("main"); return [main.scrollWidth, main.clientWidth];')
        assert width[0] == width[1], "the long name makes nothing wider"
        assert not tab.complaints()


def test_other_runs_are_chosen_and_compared(logdir: Path, browser: Browser, tmp_path: Path) -> None:
    with opened(logdir, browser, tmp_path) as tab:
        sick = tab.run(HEADLINE)
        tab.run(PICK, "well")
        assert wait_for(lambda: tab.run(STEPS) == 100 and tab.run(READY))
        assert tab.run(HEADLINE) != sick
        tab.run("for (const box of document.querySelectorAll('.runs input:not(:disabled)')) box.click();")
        assert wait_for(lambda: tab.run('return document.querySelectorAll("#compared path.curve").length;') == 2)
        assert not tab.complaints()


def test_the_colours_follow_tensorboard(logdir: Path, browser: Browser, tmp_path: Path) -> None:
    with opened(logdir, browser, tmp_path) as tab:
        light = tab.run('return getComputedStyle(document.documentElement).backgroundColor;'), tab.run(PICTURE)
        browser.run('document.body.classList.toggle("dark-mode");')
        assert wait_for(lambda: tab.run(PICTURE) != light[1])
        assert tab.run('return getComputedStyle(document.documentElement).backgroundColor;') != light[0]
        assert not tab.complaints()


def test_a_live_run_refreshes_and_keeps_what_was_chosen(browser: Browser, tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).with_name("broken_run.py")), str(tmp_path / "logs" / "live"), "400", "0.05"]
    with subprocess.Popen(program) as training:
        try:
            assert wait_for(lambda: list((tmp_path / "logs").glob("live/rank00000/optimizer0/steps-*")))
            time.sleep(1)
            with opened(tmp_path / "logs", browser, tmp_path) as tab:
                tab.choose("map-quantity", "Gradient norm")
                tab.run('[...document.querySelectorAll(".names button")].find((each) => each.title === "blocks.1").click();')
                before, names = tab.run(STEPS), tab.run(NAMES)
                assert wait_for(lambda: tab.run(STEPS) > before), "the tab keeps up"
                assert wait_for(lambda: tab.run(STEPS) == 400)
                assert wait_for(lambda: "140" in tab.run(HEADLINE)), "what happened meanwhile is told"
                assert tab.run(NAMES) == names
                assert tab.run('return document.getElementById("map-quantity").selectedOptions[0].text;') == "Gradient norm"
                assert not tab.complaints()
        finally:
            training.terminate()
