"""The page of a run: complete, small, quick, and deaf to whatever a log may say."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import SPIKE, Page, long_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stabkit
from stabkit.analyzers import analyze
from stabkit.finding import Evidence, Status
from stabkit.report import escape
from stabkit.report.figures import figures
from stabkit.report.heatmap import modules
from stabkit.report.html import page
from stabkit.runlog import RunLog, TensorInfo
from tests.cases import load_case

HOSTILE = "<img src=x onerror=alert(1)>"
NAMES = st.one_of(
    st.text(min_size=1, max_size=60),
    st.sampled_from([HOSTILE, "</script><script>alert(1)</script>", "\" onload='x'", "a\x00b\u2028c", "&lt;", "n" * 5000]),
)


@pytest.fixture(scope="module")
def sick() -> Page:
    run = load_case("growing_until_nan")
    return Page(page(run, analyze(run)))


def renamed(name: str, count: int = 3) -> RunLog:
    """A short run whose tensors, marks and path are all called the same."""
    tensors = tuple(TensorInfo(f"{name}.{i}" if i else name, (2, 2), name, name, 0) for i in range(count))
    rows = np.arange(1, 31)
    columns = {"grad_sumsq": np.ones((30, count)), "weight_sumsq": np.ones((30, count)), "update_sumsq": np.ones((30, count))}
    event = {"event": "mark", "step": 3, "note": name}
    about: dict[str, Any] = {"path": name, "source": name, "events": (event,), "notes": (name,), "facts": {"precision": name}}
    return RunLog.from_arrays(rows, {"loss": np.ones(30)}, tensors, columns, {"lr": np.ones(30)}, **about)


def test_the_verdict_comes_first_and_everything_asked_for_is_there(sick: Page) -> None:
    assert sick.tags.count("h1") == 1
    words = sick.text
    order = ["warning SK302", "The run", "The tensors", "Who moved first", "Findings", "What was checked", "Could not", "Facts"]
    places = [words.index(title) for title in order]
    assert places == sorted(places)
    assert "led to" in words and "SK301 nonfinite-value" in words and "restart" in words


def test_every_finding_has_a_card_with_its_numbers_and_a_plot(sick: Page) -> None:
    found = analyze(load_case("growing_until_nan")).findings
    cards = [value for tag, name, value in sick.attributes if tag == "article" and name == "id"]
    assert cards == [f"f{i}" for i in range(1, len(found) + 1)]
    assert len(sick.figures["evidence"]) == len(found) and all(sick.figures["evidence"])
    for finding in found:
        assert finding.advice in sick.text
        assert all(evidence.metric in sick.text for evidence in finding.evidence)


def test_what_could_not_be_looked_at_is_said_with_its_reason() -> None:
    run = load_case("no_warmup")
    diagnosis = analyze(run)
    words = Page(page(run, diagnosis)).text
    blind = [outcome for outcome in diagnosis.outcomes if outcome.status is Status.NOT_APPLICABLE and outcome.occasion]
    assert blind
    assert all(f"{outcome.rule} {outcome.name}" in words and outcome.reason in words for outcome in blind)


def test_a_healthy_run_is_called_clear_with_how_much_was_looked_at(make: Any) -> None:
    run = load_case("healthy")
    words = Page(page(run, analyze(run), left_out=2)).text
    assert "✓ clear Nothing was found." in words
    assert re.search(r"\d+ of the \d+ rules about this run looked; .*2 not asked", words)
    blind = make.diagnosis(make.outcome("SK201", "loss-spike", Status.NOT_APPLICABLE, "no loss"))
    words = Page(page(run, blind)).text
    assert "not judged This run could not be judged. 0 of the 1 rule" in words and "clear" not in words.split("The run")[0]


def test_nothing_is_asked_from_anywhere(sick: Page) -> None:
    for tag, name, value in sick.attributes:
        assert name not in ("src", "style", "srcset", "action") and not name.startswith("on"), (tag, name, value)
        assert not (name == "href" and not value.startswith("#")), value
    assert "link" not in sick.tags and "base" not in sick.tags and "iframe" not in sick.tags
    assert not re.search(r"url\((?!#)|@import|https?:|//[a-z]", "".join(sick.styles))
    scripts = "".join(sick.scripts[1:]).replace("http://www.w3.org/2000/svg", "")  # a vocabulary's name; nothing asks for it
    assert not re.search(r"https?:|fetch\(|XMLHttp|WebSocket|import\(|innerHTML|insertAdjacent|document\.write|eval\(", scripts)


def test_the_policy_allows_this_style_and_these_scripts_only(sick: Page) -> None:
    (policy,) = [value for _, name, value in sick.attributes if name == "content" and "default-src" in value]
    assert policy.startswith("default-src 'none';")
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (*sick.styles, *sick.scripts[1:])]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes


@given(NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_name_stays_text_everywhere(make: Any, name: str) -> None:
    plain = Page(page(renamed("w"), verdict(make, "w")))
    odd = Page(page(renamed(name), verdict(make, name)))
    assert [tag for tag in odd.tags if tag != "span"] == [tag for tag in plain.tags if tag != "span"]
    assert len(odd.scripts) == len(plain.scripts) and odd.styles == plain.styles
    assert {n for _, n, _ in odd.attributes} - {"title"} == {n for _, n, _ in plain.attributes} - {"title"}
    drawn = {tensor for figure in odd.figures["heatmaps"] for tensor in figure["tensors"]}
    assert escape.printable(name) in drawn


def verdict(make: Any, name: str) -> Any:
    evidence = (Evidence(metric="loss", observed=math.inf, expected=math.nan, step=5, tensor=name, note=name),)
    found = make.finding(name=name, rule="X1", message=name, advice=name, tensors=(name,) * 9, evidence=evidence)
    consequence = make.finding(message=name, name=name)
    outcomes = (
        make.outcome("X1", name, Status.FOUND, "", replace(found, consequences=(consequence,))),
        make.outcome("X2", name, Status.NOT_APPLICABLE, name or "-"),
    )
    return make.diagnosis(*outcomes, notes=(name,), path=name or "-")


PLAIN = st.one_of(NAMES, st.floats(), st.none(), st.integers())


@given(st.recursive(PLAIN, lambda inner: st.dictionaries(NAMES, inner, max_size=3) | st.lists(inner, max_size=3)))
def test_data_is_ascii_json_that_cannot_end_its_element(value: Any) -> None:
    text = escape.data(value)
    assert text.isascii() and not set("<>&\x7f") & set(text)
    json.loads(text)


def test_modules_keep_the_models_order_and_hold_every_tensor_once() -> None:
    names = ["embed.weight", "blocks.0.a.weight", "blocks.10.a", "blocks.0.a.bias", "head.weight", "3.weight", "3.bias", "odd"]
    order, found = modules([TensorInfo(name, ()) for name in names])
    assert sorted(order) == list(range(len(names)))
    assert [(m["name"], [names[i] for i in order[m["first"] : m["first"] + m["count"]]]) for m in found] == [
        ("embed", ["embed.weight"]), ("blocks.0", ["blocks.0.a.weight", "blocks.0.a.bias"]), ("blocks.10", ["blocks.10.a"]),
        ("head", ["head.weight"]), ("3", ["3.weight", "3.bias"]), ("odd", ["odd"]),
    ]  # fmt: skip
    told = [TensorInfo(name, (), place=place) for name, place in zip(names, (7, 1, 4, 0, 6, 3, 2, 5), strict=True)]
    order, found = modules(told)  # an optimizer's groups have another order than the model
    assert [m["name"] for m in found] == ["blocks.0", "3", "blocks.10", "odd", "head", "embed"]
    assert [names[i] for i in order[:2]] == ["blocks.0.a.bias", "blocks.0.a.weight"]


def test_the_heatmap_of_an_optimizer_with_groups_is_in_the_models_order(tmp_path: Path) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1))
    matrices, others = ([p for p in model.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
    optimizer = torch.optim.AdamW([{"params": others, "weight_decay": 0.0}, {"params": matrices}])
    with stabkit.watch(model, optimizer, tmp_path / "run", tensorboard=False):
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 3)).square().mean().backward()
            optimizer.step()
    [heatmap] = figures(run := stabkit.load(tmp_path / "run"), analyze(run))["heatmaps"]
    assert run.tensors[0].name != "0.weight"
    assert heatmap["tensors"] == [name for name, _ in model.named_parameters()]


def levels(figure: dict[str, Any], metric: str) -> tuple[Any, Any]:
    """The heatmap's values and deviations [tensors, columns], as the page's script reads them."""
    quantity = next(each for each in figure["quantities"] if each["metric"] == metric)
    shape = (len(figure["tensors"]), figure["columns"])
    codes = np.frombuffer(base64.b64decode(quantity["level"]), "<u2").reshape(shape).astype(float)
    values = 10 ** (quantity["low"] + (codes - 2) / 65532 * (quantity["high"] - quantity["low"]))
    return values, np.frombuffer(base64.b64decode(quantity["deviation"]), np.int8).reshape(shape) / 10


def test_a_spike_of_one_step_in_thousands_stands_in_the_heatmap_and_in_the_loss() -> None:
    run = long_run(20_000, 40)
    drawn = figures(run, analyze(run))
    values, deviations = levels(drawn["heatmaps"][0], "grad_norm")
    truth = run.table("grad_norm").values
    width = drawn["heatmaps"][0]["width"]
    column = int(SPIKE * 20_000) // width
    assert values[20, column] == pytest.approx(truth[:, 20].max(), rel=1e-3)
    assert deviations[20, column] == 12.7
    others = np.delete(deviations[:, 6:], 20, axis=0)
    assert np.mean(np.abs(others) > 10) < 0.001, "a quiet tensor stays quiet"
    assert max(drawn["timeline"]["lines"][0]["values"]) == 60


def test_broken_numbers_stand_in_the_heatmap_where_they_began() -> None:
    run = load_case("root_of_zero")
    (figure,) = figures(run, analyze(run))["heatmaps"]
    quantity = figure["quantities"][0]
    codes = np.frombuffer(base64.b64decode(quantity["level"]), "<u2").reshape(len(figure["tensors"]), -1)
    first = {name: int(np.argmax(row == 65_535)) + figure["first"] for name, row in zip(figure["tensors"], codes, strict=True)}
    assert first["blocks.1.fc1.weight"] == 90 and first["embed.weight"] == 91


@pytest.mark.parametrize("name", ["healthy", "root_of_zero"])
def test_a_log_without_tensors_or_without_steps_gets_a_page(name: str) -> None:
    run = load_case(name)
    bare = RunLog.from_arrays(run.steps, {"loss": run.series("loss").values}, path="bare.csv", source="csv")
    assert "Nothing was recorded per tensor" in Page(page(bare, analyze(bare))).text
    empty = run.until(0)
    assert "could not be judged" in Page(page(empty, analyze(empty))).text


def test_a_large_log_makes_a_small_page_quickly() -> None:
    """A tenth of the large log's steps here; all of them in the slow test below."""
    run = long_run(10_000, 300)
    diagnosis = analyze(run)
    began = time.process_time()
    text = page(run, diagnosis)
    took = time.process_time() - began
    assert len(text.encode()) < 4e6, "was 2.3 MB when this was written"
    assert took < 4, "was 1 s when this was written"


@pytest.mark.slow
def test_300_tensors_by_100000_steps(tmp_path: Path) -> None:
    run = long_run(100_000, 300)
    diagnosis = replace(analyze(run.until(2000)), steps=100_000)
    began = time.process_time()
    text = page(run, diagnosis)
    took = time.process_time() - began
    (tmp_path / "large.html").write_text(text)
    print(f"{len(text.encode()) / 1e6:.2f} MB, {took:.1f} s")
    assert len(text.encode()) < 8e6
    assert took < 6, "was 2 s when this was written"
