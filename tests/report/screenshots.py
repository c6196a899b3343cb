"""Pictures of the page for the documentation: `python -m tests.report.screenshots [FOLDER]` (needs chromium-driver)."""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

from stabkit.analyzers import analyze
from stabkit.report.html import page
from tests.browser import Browser, process
from tests.cases import load_case

PICTURES = {
    "report": ("diverging", "light", 1120, 1500),
    "report-dark": ("root_of_zero", "dark", 1120, 1500),
}


def take(browser: Browser, path: Path, scheme: str, width: int, height: int, target: Path) -> None:
    """Write what a window of a size shows of a page; a height of 0 stands for all of it."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.command("Emulation.setEmulatedMedia", features=features)
    size = {"width": width, "height": height or 900, "deviceScaleFactor": 1, "mobile": False}
    browser.command("Emulation.setDeviceMetricsOverride", **size)
    browser.command("Emulation.setScrollbarsHidden", hidden=True)
    browser.open(path.as_uri())
    if not height:
        whole = browser.run("return document.documentElement.scrollHeight;")
        browser.command("Emulation.setDeviceMetricsOverride", **{**size, "height": whole})
    target.write_bytes(base64.b64decode(browser.command("Page.captureScreenshot", format="png")["data"]))


def main(folder: Path) -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "driver.log"
        with process(["chromedriver", "--port=0"], log, r"started successfully on port (\d+)") as port:
            browser = Browser(f"http://127.0.0.1:{port}", Path(scratch) / "profile")
            for name, (case, scheme, width, height) in PICTURES.items():
                run = load_case(case)
                path = Path(scratch) / f"{case}.html"
                path.write_text(page(run, analyze(run)), encoding="utf-8")
                take(browser, path, scheme, width, height, folder / f"{name}.png")
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
