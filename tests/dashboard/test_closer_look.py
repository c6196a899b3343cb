"""A stretch of steps looked at closely in the Stability tab, in a real browser: dragged with a mouse, or typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from long_log import transformer_names, write_log
from test_stability_tab import CLICK, NAMES, PICTURE, READY, Tab, logdir, opened  # noqa: F401  (logdir is a fixture)

from tests.browser import Browser, wait_for

pytestmark = pytest.mark.slow

AXIS = 'return [...document.querySelectorAll(".map-axis text")].map((each) => Number(each.textContent.replace(/,/g, "")));'
WINDOW = 'return [...document.querySelectorAll(".closer input")].map((each) => Number(each.value));'
SETTLED = 'return !/reading/.test(document.querySelector(".closer [role=status]").textContent);'
TYPE = """
[...args].forEach((value, i) => { document.querySelectorAll(".closer input")[i].value = value; });
document.querySelector(".closer").requestSubmit();
"""
CAPTION = 'return document.querySelector(".caption").textContent;'
BOX = "const box = {}.getBoundingClientRect(); return [box.left, box.top, box.width];"


def drag(tab: Tab, picture: str, left: float, first: float, last: float) -> None:
    """Drag a real mouse over a picture, whose steps begin `left` pixels in, from one share of its width to another."""
    box = tab.run(BOX.format(f"document.querySelector('{picture}')"))
    frame = tab.browser.run(BOX.format("document.querySelector('iframe[src*=stabkit]')"))
    wide = box[2] - left - 1
    places = [frame[0] + box[0] + left + share * wide for share in (first, (first + last) / 2, last, last)]
    for kind, x in zip(("mousePressed", "mouseMoved", "mouseMoved", "mouseReleased"), places, strict=True):
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        tab.browser.command("Input.dispatchMouseEvent", type=kind, x=x, y=frame[1] + box[1] + 8, **held)


def told(tab: Tab, row: int, share: float) -> Any:
    """What is said of a cell."""
    return tab.run(
        """
        const canvas = document.querySelector(".map canvas"), box = canvas.getBoundingClientRect();
        const clientX = box.left + args[1] * box.width, clientY = box.top + (args[0] + 0.5) * 16;
        canvas.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY, bubbles: true }));
        return document.querySelector("#heatmap .tip").textContent;
        """,
        row,
        share,
    )


def test_a_drag_over_the_heatmap_shows_these_steps_alone(logdir: Path, browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    with opened(logdir, browser, tmp_path) as tab:
        names, whole = tab.run(NAMES), tab.run(PICTURE)
        drag(tab, ".map canvas", 0, 120 / 199, 160 / 199)
        assert wait_for(lambda: tab.run(WINDOW) == [121, 161] and tab.run(SETTLED))
        assert tab.run('return document.querySelector(".panel").hidden;'), "a drag is no click"
        assert wait_for(lambda: tab.run(PICTURE) != whole)
        assert tab.run(NAMES) == names
        ticks = tab.run(AXIS)
        assert ticks and min(ticks) >= 121 and max(ticks) <= 161
        assert told(tab, names.index("blocks.1.1.weight"), 19 / 40).startswith("blocks.1.1.weightstep 140")
        tab.run(CLICK, "blocks.1.1.weight", 19 / 40)
        assert wait_for(lambda: tab.run('return document.querySelectorAll(".panel .plots path.curve").length;') >= 5)
        tab.run('document.getElementById("closer-back").click();')
        assert wait_for(lambda: tab.run(WINDOW) == [1, 200] and tab.run(PICTURE) == whole)
        assert not tab.complaints()


def test_steps_are_typed_and_the_timeline_is_dragged(logdir: Path, browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    with opened(logdir, browser, tmp_path) as tab:
        tab.run(TYPE, 130, 150)
        assert wait_for(lambda: tab.run(WINDOW) == [130, 150] and tab.run(SETTLED) and "A cell is one step" in tab.run(CAPTION))
        assert tab.run('return document.querySelectorAll("#timeline .badge").length;') >= 1
        drag(tab, "#timeline", 210, 0.25, 0.75)
        assert wait_for(lambda: tab.run(WINDOW) == [135, 145] and tab.run(SETTLED))
        tab.run(TYPE, -5, 100_000)
        assert not tab.run('return document.querySelector(".closer").checkValidity();'), "there are no such steps"
        tab.run(TYPE, 1, 200)
        assert wait_for(lambda: tab.run('return document.getElementById("closer-back").hidden;'))
        assert not tab.complaints()


def test_a_long_log_is_drawn_soon_and_its_spike_found_by_looking_closer(browser: Browser, tmp_path: Path) -> None:
    spike, last = 4321, 6000
    write_log(tmp_path / "logs" / "long", last, transformer_names(300), spike=spike).close()
    with opened(tmp_path / "logs", browser, tmp_path) as tab:
        assert tab.run(READY)
        cell = int((spike - 1) / 15) * 15 + 1
        assert f"steps {cell}–{cell + 14}" in told(tab, 0, (spike - 1) / (last - 1))
        tab.run(TYPE, spike - 20, spike + 20)
        assert wait_for(lambda: tab.run(SETTLED) and "A cell is one step" in tab.run(CAPTION))
        said = told(tab, 0, 0.5)
        assert f"step {spike}" in said and "above its past" in said
        assert "above" not in told(tab, 0, 0.45)
        lines = tab.run('const box = (each) => document.querySelector(each).getBoundingClientRect(); '
                        'return [box("#timeline svg").right, box(".map canvas").right];')  # fmt: skip
        assert lines[0] == pytest.approx(lines[1], abs=1), "timeline and heatmap end at the same place"
        assert not tab.complaints()
