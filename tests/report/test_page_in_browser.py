"""The page of a run in a real browser, opened from disk without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import long_run
from test_html_report import HOSTILE, renamed, verdict

from stabkit.analyzers import analyze
from stabkit.finding import Evidence, Status
from stabkit.report.html import page
from stabkit.runlog import RunLog, TensorInfo
from tests.browser import Browser
from tests.cases import load_case

pytestmark = pytest.mark.slow

PICTURE = """
const canvas = document.querySelector(".map canvas");
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
const colours = {};
let sum = 0;
for (let i = 0; i < pixels.length; i += 4) {
  sum = (sum * 31 + 7 * pixels[i] + 3 * pixels[i + 1] + pixels[i + 2]) % 4294967291;
  if (pixels[i + 3]) colours[pixels.slice(i, i + 3).join()] = true;
}
return { width: canvas.width, height: canvas.height, colours: Object.keys(colours).length, sum };
"""
# Media queries tell of new colours with the next frame.
NEXT_FRAME = "return new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));"
CHOOSE = """
const select = document.getElementById(arguments[0]);
select.value = [...select.options].find((option) => option.text.startsWith(arguments[1])).value;
select.dispatchEvent(new Event("change"));
"""
NAMES = 'return [...document.querySelectorAll(".names > *")].map((row) => row.textContent);'


def show(browser: Browser, run: RunLog, folder: Path, diagnosis: Any = None) -> None:
    """Open the page of a run, with the network off."""
    path = folder / "report.html"
    path.write_text(page(run, diagnosis or analyze(run)), encoding="utf-8")
    browser.command("Network.enable")
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.command("Network.emulateNetworkConditions", **offline)
    browser.log()
    browser.open(path.as_uri())
    assert browser.run("return document.documentElement.dataset.drawn;") == "yes", browser.log()


def complaints(browser: Browser) -> list[str]:
    """All that the console holds, but for a hint that these tests read the canvas often."""
    return [entry["message"] for entry in browser.log() if "will-read-frequently" not in entry["message"]]


def colours(browser: Browser, scheme: str, media: str = "") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.command("Emulation.setEmulatedMedia", media=media, features=features)
    browser.run(NEXT_FRAME)


def test_the_pictures_are_drawn_and_answer(browser: Browser, tmp_path: Path) -> None:
    show(browser, load_case("growing_until_nan"), tmp_path)
    first = browser.run(PICTURE)
    assert first["colours"] > 8 and first["width"] > 500
    assert browser.run('return document.querySelectorAll("#timeline path.curve").length;') == 3
    assert browser.run('return document.querySelectorAll(".plots svg").length;') == 2
    assert browser.run('return document.querySelectorAll("#timeline .broken").length;') >= 1, "a loss that is NaN is shown"

    browser.run(CHOOSE, "map-quantity", "Gradient norm")
    second = browser.run(PICTURE)
    assert second["sum"] != first["sum"] and second["height"] == first["height"]
    browser.run(CHOOSE, "map-scale", "value")
    assert browser.run(PICTURE)["sum"] != second["sum"]
    browser.run(CHOOSE, "map-quantity", "Non-finite")
    assert browser.run(PICTURE)["colours"] > 1

    unfolded = browser.run(NAMES)
    assert "fc2.weight" in unfolded
    browser.run('document.getElementById("map-fold").click();')
    folded = browser.run(NAMES)
    assert folded == ["embed.weight", "position.weight", "blocks.0 · 12", "blocks.1 · 12", "norm · 2", "head.weight"]
    assert browser.run(PICTURE)["height"] * len(unfolded) == first["height"] * len(folded)
    browser.run('document.querySelectorAll(".names button")[1].click();')
    assert len(browser.run(NAMES)) == len(folded) + 12
    assert browser.run('return document.activeElement.textContent;') == "blocks.1 · 12", "the focus stays where it was"
    assert complaints(browser) == []


def test_the_same_cell_says_its_tensor_step_and_value(browser: Browser, tmp_path: Path) -> None:
    run = load_case("growing_until_nan")
    show(browser, run, tmp_path)
    told = browser.run("""
        const canvas = document.querySelector(".map canvas"), box = canvas.getBoundingClientRect();
        const x = box.left + box.width * (99 / 159), y = box.top + 8;
        canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y, bubbles: true }));
        return document.querySelector("#heatmap .tip").textContent;
    """)
    value = float(run.table("update_ratio").series("embed.weight").values[100])
    assert told.startswith("embed.weight") and "step 100" in told
    assert f"Update ratio {value:.3g}" in told


def test_a_hostile_name_is_text_in_the_pictures_too(browser: Browser, tmp_path: Path, request: Any) -> None:
    make = request.getfixturevalue("make")
    show(browser, renamed(HOSTILE), tmp_path, verdict(make, HOSTILE))
    browser.run("for (const button of document.querySelectorAll('button')) button.click();")
    assert browser.run("return document.querySelectorAll('img').length;") == 0
    assert any(HOSTILE in name for name in browser.run(NAMES))
    assert complaints(browser) == []
    show(browser, renamed("n" * 5000), tmp_path, verdict(make, "n" * 5000))
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth;"), "no name widens the page"


def test_it_can_be_read_in_the_dark_on_paper_and_on_a_telephone(browser: Browser, tmp_path: Path) -> None:
    show(browser, load_case("diverging"), tmp_path)
    light = browser.run(PICTURE)
    colours(browser, "dark")
    background = browser.run("return getComputedStyle(document.documentElement).backgroundColor;")
    assert background == "rgb(22, 21, 19)"
    assert browser.run(PICTURE)["sum"] != light["sum"]
    colours(browser, "light")
    pdf = browser.command("Page.printToPDF", printBackground=True)["data"]
    assert len(pdf) > 50_000
    size = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": False}
    browser.command("Emulation.setDeviceMetricsOverride", **size)
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth;")
    assert complaints(browser) == []


def test_on_paper_the_dark_page_is_the_light_one(browser: Browser, tmp_path: Path) -> None:
    show(browser, load_case("diverging"), tmp_path)
    seen = {}
    for scheme in ("light", "dark"):
        colours(browser, scheme)
        screen = browser.run(PICTURE)
        browser.run('window.dispatchEvent(new Event("beforeprint"));')
        seen[scheme] = browser.run(PICTURE)
        assert browser.run('return document.querySelector("main").clientWidth;') == 710, "a sheet, not the window"
        browser.run('window.dispatchEvent(new Event("afterprint"));')
        assert browser.run(PICTURE) == screen
    assert seen["light"] == seen["dark"]
    assert complaints(browser) == []


def test_without_scripts_the_findings_are_all_there(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    run = load_case("diverging")
    diagnosis = analyze(run)
    path.write_text(page(run, diagnosis), encoding="utf-8")
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(path.as_uri())
    browser.command("Emulation.setScriptExecutionDisabled", value=False)
    words = browser.run("return document.body.innerText;")
    assert "The pictures need JavaScript" in words
    assert all(finding.advice in words for finding in diagnosis.findings)


def test_300_tensors_open_at_once(browser: Browser, tmp_path: Path) -> None:
    show(browser, long_run(20_000, 300), tmp_path)
    took = browser.run("""
        const from = performance.now();
        document.getElementById("map-fold").click();
        return performance.now() - from;
    """)
    assert len(browser.run(NAMES)) == 300 + 38
    assert took < 3000, "was 300 ms when this was written"
    opened = browser.run("const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd - t.startTime;")
    assert opened < 5000
    print(f"opened in {opened:.0f} ms, unfolded in {took:.0f} ms")
    assert complaints(browser) == []


def odd_runs() -> dict[str, RunLog]:
    """Logs at the edge of what there can be."""
    tensors = (TensorInfo("a.weight", (2, 2)), TensorInfo("b", (3,)))
    nan = np.full((3, 2), np.nan)
    columns = {"grad_sumsq": np.ones((3, 2)), "update_sumsq": np.zeros((3, 2)), "weight_sumsq": np.zeros((3, 2))}
    steps, loss = [1, 2, 3], {"loss": [1.0, 2.0, 3.0]}
    broken = {"loss": [np.nan] * 3, "loss_reduction": [1.0] * 3}
    two = RunLog.from_arrays(steps, loss, tensors, columns)
    other = RunLog.from_arrays([1, 500, 100_000], loss, tensors[:1], {"grad_sumsq": np.array([[1.0], [np.inf], [0.0]])})
    return {
        "one step": RunLog.from_arrays([1], {"loss": [1.0]}, tensors, {"grad_sumsq": np.ones((1, 2))}),
        "no step": RunLog.from_arrays([], {}, tensors),
        "nan only": RunLog.from_arrays(steps, broken, tensors, {"grad_sumsq": nan}),
        "constants and zeros": two,
        "infinite loss": RunLog.from_arrays(steps, {"loss": [1.0, np.inf, 1e300]}),
        "far apart": RunLog.from_arrays([5, 10**6, 10**9], loss, tensors, columns),
        "two optimizers": replace(two, streams=(*two.streams, *other.streams)),
    }


@pytest.mark.parametrize("name", odd_runs())
def test_an_odd_log_gets_a_page_without_complaints(browser: Browser, tmp_path: Path, name: str, request: Any) -> None:
    make = request.getfixturevalue("make")
    found = make.finding(first_step=1, last_step=3, tensors=("b",), evidence=(Evidence(metric="loss", observed=1.0, step=1),))
    diagnosis = make.diagnosis(make.outcome("SK201", "loss-spike", Status.FOUND, "", found))
    show(browser, odd_runs()[name], tmp_path, diagnosis)
    for select in ("map-optimizer", "map-scale", "map-quantity"):
        browser.run(f"""
            const select = document.getElementById("{select}");
            for (const option of select ? select.options : []) {{
              select.value = option.value; select.dispatchEvent(new Event("change"));
            }}
        """)
    drawn = browser.run("return [...document.querySelectorAll('svg *')].flatMap((e) => [...e.attributes].map((a) => a.value));")
    assert not [value for value in drawn if "NaN" in value or "Infinity" in value]
    assert complaints(browser) == []
