"""Pictures of the Stability tab: `python -m tests.dashboard.screenshots LOGDIR RUN TENSOR STEP [FOLDER]`.

With `--long LOGDIR RUN FIRST LAST [FOLDER]` one of a long run, and one of some of its steps looked at closely.
"""

from __future__ import annotations

import base64
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from test_browser import tensorboard
from test_closer_look import SETTLED, TYPE
from test_stability_tab import CLICK, NAMES, PICK, STEPS, Tab

from tests.browser import Browser, process, wait_for

WIDTH, HEIGHT = 1440, 1500


def take(tab: Tab, target: Path) -> None:
    """Write what the window shows."""
    time.sleep(1)
    target.write_bytes(base64.b64decode(tab.browser.command("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def shown(logdir: Path, run: str) -> Iterator[Tab]:
    """The tab with a run chosen, and the others judged."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        tensorboard(logdir, Path(scratch) / "tensorboard.log") as address,
        process(["chromedriver", "--port=0"], Path(scratch) / "log", r"started successfully on port (\d+)") as port,
    ):
        browser = Browser(f"http://127.0.0.1:{port}", Path(scratch) / "profile")
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        browser.command("Emulation.setDeviceMetricsOverride", **size)
        tab = Tab(browser, address)
        tab.run(PICK, run)
        wait_for(lambda: tab.run('return document.querySelectorAll(".runs .severity:empty").length;') == 0)
        told = 'const told = document.querySelector(".verdict .run code"); return told && told.title;'
        wait_for(lambda: tab.run(told) == run and tab.run('return document.querySelectorAll(".map canvas").length;'))
        yield tab
        browser.close()


def broken(logdir: Path, run: str, tensor: str, step: int, folder: Path) -> None:
    """The tab in light, and after a click on a tensor's cell in dark."""
    with shown(logdir, run) as tab:
        take(tab, folder / "stability-tab.png")
        module = tensor.rsplit(".", 2)[0]
        if tensor not in tab.run(NAMES):
            tab.run('[...document.querySelectorAll(".names button")].find((b) => b.title === args[0]).click();', module)
        steps = tab.run(STEPS)
        tab.browser.run('document.body.classList.add("dark-mode");')
        tab.run(CLICK, tensor, (step - 1) / (steps - 1))
        wait_for(lambda: tab.run('return document.querySelectorAll(".panel .page").length;'))
        top = 'document.getElementById("heatmap").getBoundingClientRect().top'
        tab.run(f'document.querySelector("main").scrollBy(0, {top} - 70);')
        take(tab, folder / "stability-tab-dark.png")


def long(logdir: Path, run: str, first: int, last: int, folder: Path) -> None:
    """All of a long run, and then some steps of it."""
    with shown(logdir, run) as tab:
        take(tab, folder / "stability-tab-long.png")
        tab.run(TYPE, first, last)
        wait_for(lambda: tab.run(SETTLED))
        time.sleep(3)
        take(tab, folder / "stability-tab-closer.png")


if __name__ == "__main__":
    whole_run = sys.argv[1] == "--long"
    where, name, this, that, *folders = sys.argv[2 if whole_run else 1 :]
    target = Path(folders[0] if folders else "docs")
    if whole_run:
        long(Path(where), name, int(this), int(that), target)
    else:
        broken(Path(where), name, this, int(that), target)
