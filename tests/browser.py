"""Headless Chromium for tests: pages looked at as a reader would."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["PATIENCE", "Browser", "browser", "process", "request", "wait_for"]

PATIENCE = 60.0
NEEDED = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]

TEXTS = """
const texts = [];
function walk(node) {  // TensorBoard's older dashboards live in shadow roots, which page source and XPath leave out
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) { if (child.textContent.trim()) texts.push(child.textContent.trim()); }
    else if (!["STYLE", "SCRIPT", "TEMPLATE", "DOM-MODULE"].includes(child.nodeName)) walk(child);
  }
}
walk(document.body);
return texts;
"""


@contextmanager
def process(arguments: list[str], log: Path, address: str) -> Iterator[str]:
    """Start a server in a group of its own; yields what `address` matches in its output, and ends the whole group."""
    with log.open("wb") as output:
        server = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:

        def found() -> str | None:
            assert server.poll() is None, log.read_text()
            match = re.search(address, log.read_text())
            return match.group(1) if match else None

        yield wait_for(found)
    finally:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(server.pid, ending)
                server.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def wait_for(ask: Callable[[], Any]) -> Any:
    """The first true answer; the last one where there is none within our patience."""
    end = time.monotonic() + PATIENCE
    while not (answer := ask()) and time.monotonic() < end:
        time.sleep(0.2)
    return answer


def request(url: str, data: Any = None, method: str | None = None) -> Any:
    body = None if data is None else json.dumps(data).encode()
    headers = {"Content-Type": "application/json"}
    # No proxy of the environment's: both servers are on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, body, headers, method=method), timeout=PATIENCE) as reply:
        return json.load(reply)


class Browser:
    """Headless Chromium, by the WebDriver protocol spoken to chromedriver."""

    def __init__(self, driver: str, profile: Path) -> None:
        flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", "disable-dev-shm-usage",
                 "window-size=1600,1400", f"user-data-dir={profile}"]  # fmt: skip
        wanted = {
            "goog:chromeOptions": {"args": [f"--{flag}" for flag in flags], "binary": shutil.which("chromium")},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = request(f"{driver}/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"{driver}/session/{session['value']['sessionId']}"

    def open(self, url: str) -> None:
        request(f"{self._session}/url", {"url": url})

    def texts(self) -> list[str]:
        """Every text in the document, those in shadow roots included."""
        return list(request(f"{self._session}/execute/sync", {"script": TEXTS, "args": []})["value"])

    def complaints(self) -> list[str]:
        """Errors the page's scripts raised."""
        entries = request(f"{self._session}/se/log", {"type": "browser"})["value"]
        return [e["message"] for e in entries if e["level"] == "SEVERE" and e["source"] == "javascript"]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(request(f"{self._session}/screenshot")["value"]))

    def run(self, script: str, *args: Any) -> Any:
        """What a function with this body returns in the page."""
        return request(f"{self._session}/execute/sync", {"script": script, "args": list(args)})["value"]

    def command(self, name: str, **params: Any) -> Any:
        """A command of the developer tools' protocol."""
        return request(f"{self._session}/goog/cdp/execute", {"cmd": name, "params": params})["value"]

    def log(self) -> list[dict[str, Any]]:
        """Everything in the console since it was last asked for: errors, refused requests, violations of the policy."""
        return list(request(f"{self._session}/se/log", {"type": "browser"})["value"])

    def close(self) -> None:
        request(self._session, method="DELETE")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser with an empty profile."""
    if NEEDED:
        pytest.skip(f"{' and '.join(NEEDED)} not installed (Debian: apt-get install chromium chromium-driver)")
    with process(["chromedriver", "--port=0"], tmp_path / "driver.log", r"started successfully on port (\d+)") as port:
        opened = Browser(f"http://127.0.0.1:{port}", tmp_path / "profile")
        yield opened
        opened.close()
