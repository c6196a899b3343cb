"""A real TensorBoard on a real log, looked at in a real browser."""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stabkit.dashboard.layout import custom_scalars
from stabkit.dashboard.writer import DashboardWriter
from stabkit.metric import TENSOR_COLUMNS
from stabkit.runlog import Layout, StepRecord, TensorInfo
from stabkit.runlog.record import Group
from tests.browser import Browser, process, request, wait_for

pytestmark = pytest.mark.slow

NAMES = ("wte.weight", *(f"blocks.{block}.weight" for block in range(4)), "head.weight")
LAYOUT = Layout(tuple(TensorInfo(name, (8, 8)) for name in NAMES))
NAN_FROM = 180


def record(step: int) -> StepRecord:
    """A step of a made-up run whose loss and gradient become NaN towards its end."""
    rng = np.random.default_rng(step)
    tensors = np.abs(rng.normal(1, 0.2, (len(LAYOUT.tensors), len(TENSOR_COLUMNS)))) * 64 / (1 + step / 20)
    places = {column.name: i for i, column in enumerate(TENSOR_COLUMNS)}
    tensors[:, [places["grad_nonfinite"], places["weight_nonfinite"]]] = 0
    loss, norm = 3 / (1 + step / 50) + 0.1 * rng.normal(), 2 / (1 + step / 60)
    if step >= NAN_FROM:
        tensors[2, [places["grad_sumsq"], places["grad_used_sumsq"]]] = np.nan
        tensors[2, places["grad_nonfinite"]] = 5
        loss = norm = float("nan")
    return StepRecord(
        step, 0, 0, time=1.7e9 + step, loss=loss, loss_reduction=1, backward_count=1, grad_norm=norm,
        grad_norm_used=min(norm, 1), clip_max_norm=1, clip_coefficient=min(1, 1 / norm), weight_norm=20,
        update_norm=0.02 * norm, groups=(Group(lr=1e-3 * min(1, step / 40)), Group(lr=5e-4)), tensors=tensors,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The log of 200 steps."""
    directory = tmp_path / "logs" / "run"
    directory.mkdir(parents=True)
    writer = DashboardWriter(directory)
    writer.layout(0, LAYOUT)
    for step in range(1, 201):
        writer.step(0, record(step))
    writer.close()
    return directory


@contextmanager
def tensorboard(logdir: Path, log: Path, *options: str) -> Iterator[str]:
    """A TensorBoard on a free port; yields its address."""
    start = "from tensorboard.main import run_main; run_main()"
    command = [sys.executable, "-c", start, "--logdir", str(logdir), "--port", "0", "--host", "127.0.0.1"]
    with process([*command, "--reload_interval", "1", *options], log, r"(http://127\.0\.0\.1:\d+/)") as address:
        yield address


def test_custom_scalars_page(run: Path, browser: Browser, tmp_path: Path) -> None:
    page = custom_scalars()
    titles = [category.title for category in page.category]
    titles += [chart.title for category in page.category for chart in category.chart]
    with tensorboard(run.parent, tmp_path / "tensorboard.log") as address:
        browser.open(f"{address}#custom_scalars")
        modules = f"Matches ({len(LAYOUT.tensors)})"
        expected = {title: titles.count(title) for title in titles} | {modules: 3, "Matches (2)": 2, "Matches (1)": 3}
        seen: list[str] = []

        def shown() -> bool:
            seen[:] = [re.sub(r"\s+", " ", text) for text in browser.texts()]
            return all(seen.count(text) >= count for text, count in expected.items())

        wait_for(shown)
        browser.screenshot(tmp_path / "custom_scalars.png")
        assert {text: seen.count(text) for text in expected} == expected
        assert not browser.complaints()


def test_time_series_page(run: Path, browser: Browser, tmp_path: Path) -> None:
    with tensorboard(run.parent, tmp_path / "tensorboard.log") as address:
        browser.open(f"{address}#timeseries")
        expected = {"health", "modules", "/loss", "/clip_rate", "NaN"}  # a card's title is cut in two
        wait_for(lambda: expected <= set(browser.texts()))
        browser.screenshot(tmp_path / "time_series.png")
        assert expected <= set(browser.texts())
        assert not browser.complaints()


@pytest.mark.parametrize("loader", ["auto", "false"])
def test_live_and_restarted_run(run: Path, tmp_path: Path, loader: str) -> None:
    """New steps appear while TensorBoard runs, and a restart replaces those it repeats, with either of its loaders."""
    with tensorboard(run.parent, tmp_path / "tensorboard.log", "--load_fast", loader) as address:

        def points(tag: str) -> list[tuple[int, Any]]:
            query = urllib.parse.urlencode({"run": "run", "tag": tag})
            try:
                found = request(f"{address}data/plugin/scalars/scalars?{query}")
            except urllib.error.HTTPError:  # not loaded yet
                return []
            return [(step, value) for _, step, value in found]

        wait_for(lambda: len(points("health/loss")) == 200)
        loss = points("health/loss")
        assert [step for step, _ in loss] == list(range(1, 201))
        assert loss[-1][1] == "NaN"
        writer = DashboardWriter(run)
        writer.layout(0, LAYOUT)
        for step in (150, 151):
            again = record(step)
            again.loss = 0.5
            writer.step(0, again)
        expected = [*loss[:149], (150, 0.5), (151, 0.5)]
        wait_for(lambda: points("health/loss") == expected)
        assert points("health/loss") == expected
        writer.close()
