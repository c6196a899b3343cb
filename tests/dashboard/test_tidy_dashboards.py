"""TensorBoard's ordinary dashboards of a model of 300 tensors: few tags, histograms, findings as text; and in a browser."""

from __future__ import annotations

import html
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dashboard_log import NAN, PLACE, raw_events, record
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.text import text_plugin
from tensorboard.util import tensor_util
from test_browser import tensorboard

import stabkit
from stabkit.dashboard.spread import LEAST_TENSORS
from stabkit.dashboard.told import markdown
from stabkit.dashboard.writer import DashboardWriter
from stabkit.demo import GPT, NO_WARMUP, Recipe, batches, standard_library_text
from stabkit.finding import Evidence, Finding, Severity
from stabkit.metric import TENSOR_COLUMNS, Array
from stabkit.runlog import Layout, TensorInfo
from tests.browser import Browser, wait_for

PARTS = ("q", "k", "v", "o", "gate", "up", "down", "norm")
HOSTILE = "<img src=x onerror=alert(1)>"


def layout(tensors: int) -> Layout:
    return Layout(tuple(TensorInfo(f"model.layers.{i // 8}.{PARTS[i % 8]}.weight", (4, 2)) for i in range(tensors)))


def columns(tensors: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    table = np.full((tensors, len(TENSOR_COLUMNS)), NAN)
    for name in ("grad_sumsq", "grad_used_sumsq", "rms_sum", "update_sumsq", "weight_sumsq"):
        table[:, PLACE[name]] = rng.lognormal(0, 1, tensors)
    table[:, [PLACE["grad_nonfinite"], PLACE["weight_nonfinite"]]] = 0
    return table


def written(folder: Path, tensors: int = 300, steps: Any = range(1, 301)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    writer = DashboardWriter(folder)
    writer.layout(0, layout(tensors))
    for step in steps:
        norms = {"grad_norm": 2.0, "grad_norm_used": 1.0, "weight_norm": 3.0, "update_norm": 0.01}
        writer.step(0, record(step, tensors=columns(tensors, step), **norms))
        writer.scalars(step, {"val_loss": 1.0})
    writer.finding(found())
    writer.close()
    return folder


def found(**details: Any) -> Finding:
    seen = Evidence(metric="loss", observed=9.0, expected=2.5, step=7, tensor="w_q", note="recent level")
    about = {"rule": "SK201", "name": "loss-spike", "severity": Severity.WARNING, "message": "loss rose to 9", "first_step": 7}
    return Finding(**{**about, "last_step": 9, "evidence": (seen,), "advice": "Lower the rate.", **details})


def accumulated(folder: Path) -> Any:
    guidance = {"scalars": 0, "tensors": 0, "histograms": 0}
    return event_accumulator.EventAccumulator(str(folder), size_guidance=guidance).Reload()


def test_the_scalars_of_300_tensors_are_few_and_in_few_groups_the_summary_first(tmp_path: Path) -> None:
    tags = accumulated(written(tmp_path / "run", steps=range(1, 4))).Tags()["scalars"]
    groups = sorted({tag.split("/")[0] for tag in tags})
    assert groups == ["health", "modules", "user"], "TensorBoard shows groups in this order, the first of them open"
    assert len([tag for tag in tags if tag.startswith("health/")]) <= 12
    assert len(tags) <= 64


def test_histograms_over_the_tensors_come_at_a_low_cadence(tmp_path: Path) -> None:
    log = accumulated(written(tmp_path / "run"))
    tags = ["tensors/log10 grad_norm_used", "tensors/log10 rms_ratio", "tensors/log10 update_ratio"]
    assert sorted(tag for tag in log.Tags()["tensors"] if tag.startswith("tensors/")) == tags
    for tag in tags:
        events = log.Tensors(tag)
        assert [event.step for event in events] == [1, 2, 4, 8, 16, 32, 64, 128, 228]
        assert log.SummaryMetadata(tag).plugin_data.plugin_name == "histograms"
        assert "power of ten" in log.SummaryMetadata(tag).summary_description
        for event in events:
            left, right, count = tensor_util.make_ndarray(event.tensor_proto).T
            assert count.sum() == 300 and np.all(left < right) and np.allclose(left[1:], right[:-1])
    table = columns(300, 64)
    ratios = np.log10(np.sqrt(table[:, PLACE["update_sumsq"]] / table[:, PLACE["weight_sumsq"]]))
    (event,) = (event for event in log.Tensors("tensors/log10 update_ratio") if event.step == 64)
    left, right, count = tensor_util.make_ndarray(event.tensor_proto).T
    assert count.tolist() == [int(np.sum((ratios >= a) & (ratios < b))) for a, b in zip(left, right, strict=True)]


def test_a_run_of_100000_steps_has_a_thousand_histograms_and_a_restart_begins_anew(tmp_path: Path) -> None:
    steps = [*range(1, 130), 5000, 5001, 20, 21]
    log = accumulated(written(tmp_path / "run", tensors=LEAST_TENSORS, steps=steps))
    assert [event.step for event in log.Tensors("tensors/log10 rms_ratio")][-1] == 20


def test_few_tensors_and_missing_numbers_make_no_histograms(tmp_path: Path) -> None:
    few = accumulated(written(tmp_path / "few", tensors=LEAST_TENSORS - 1, steps=[1]))
    assert not [tag for tag in few.Tags()["tensors"] if tag.startswith("tensors/")]
    (tmp_path / "bare").mkdir()
    writer = DashboardWriter(tmp_path / "bare")
    writer.layout(0, layout(20))
    writer.step(0, record(1, tensors=np.full((20, len(TENSOR_COLUMNS)), NAN)))
    writer.close()
    assert not [tag for tag in accumulated(tmp_path / "bare").Tags()["tensors"] if tag.startswith("tensors/")]


def test_findings_are_text_with_a_tag_for_each_rule(tmp_path: Path) -> None:
    log = accumulated(written(tmp_path / "run", steps=[1]))
    (event,) = log.Tensors("findings/SK201 loss-spike")
    assert event.step == 7
    assert log.SummaryMetadata("findings/SK201 loss-spike").plugin_data.plugin_name == "text"
    shown = text_plugin.text_array_to_html(tensor_util.make_ndarray(event.tensor_proto), True)
    assert "<strong>warning</strong> SK201 loss-spike, steps 7–9" in shown and "<table>" in shown
    assert "<td>w_q</td>" in shown and "<strong>try</strong> Lower the rate." in shown


@pytest.mark.parametrize("name", [HOSTILE, "**bold** _x_ [a](http://b)", "`code`|a|b", "1. list", "\\*", "a&amp;b", "# x"])
def test_whatever_the_log_says_stays_text(name: str) -> None:
    plain = found(message=name, advice=name, tensors=(name,))
    shown = text_plugin.text_array_to_html(np.array(markdown(plain).encode()), True)
    assert "<img" not in shown and "<a " not in shown and "<em>" not in shown and "<code>" not in shown
    assert html.unescape(shown).count(name) == 3


def test_findings_may_come_from_another_thread(tmp_path: Path) -> None:
    writer = DashboardWriter(tmp_path)
    writer.layout(0, layout(10))
    told = threading.Thread(target=lambda: [writer.finding(found(first_step=step)) for step in range(1, 200)])
    told.start()
    for step in range(1, 200):
        writer.step(0, record(step, tensors=columns(10, step)))
    told.join()
    writer.close()
    events = raw_events(tmp_path)  # whole records with right checksums, or TensorBoard's reader would stop
    assert len(events) == 3 + 199 + 199


@pytest.mark.slow
def test_the_dashboards_in_a_browser(tmp_path: Path, browser: Browser) -> None:
    logdir = written(tmp_path / "logs" / "run").parent
    with tensorboard(logdir, tmp_path / "tensorboard.log") as address:

        def shows(page: str, *wanted: str) -> None:
            browser.open("about:blank")
            browser.open(f"{address}#{page}")
            seen: list[str] = []

            def shown() -> bool:
                seen[:] = [re.sub(r"\s+", " ", text) for text in browser.texts()]
                return all(any(want in text for text in seen) for want in wanted)

            assert wait_for(shown), (wanted, seen)
            browser.screenshot(tmp_path / f"{page}.png")
            assert not browser.complaints()

        shows("text", "findings/SK201 loss-spike", "Lower the rate.")
        shows("histograms", "log10 update_ratio", "log10 rms_ratio")
        shows("timeseries", "health", "modules", "tensors", "user")


@pytest.mark.slow
def test_live_findings_of_a_real_run_stand_in_tensorboard(tmp_path: Path) -> None:
    """A rate far too high from the first step on: told while it runs, or at its end, and written beside the scalars."""
    told: list[Finding] = []
    train_with(replace(NO_WARMUP, steps=40), tmp_path / "run", told.append)
    log = accumulated(tmp_path / "run")
    assert told
    written_tags = {tag for tag in log.Tags()["tensors"] if tag.startswith("findings/")}
    assert written_tags == {f"findings/{each.rule} {each.name}" for each in told}
    assert [tag for tag in log.Tags()["tensors"] if tag.startswith("tensors/")]


def train_with(recipe: Recipe, folder: Path, on_finding: Any) -> None:
    torch.manual_seed(recipe.seed)
    model, data = GPT(width=32, layers=2, heads=2), batches(standard_library_text(100_000), recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr)
    with stabkit.watch(model, optimizer, folder, on_finding=on_finding):
        for _ in range(recipe.steps):
            inputs, targets = next(data)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
            optimizer.step()
