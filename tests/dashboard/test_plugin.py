"""The Stability tab's routes, asked as TensorBoard would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from long_log import HOSTILE, LONG, transformer_names, write_log
from tensorboard.backend import application
from tensorboard.plugins import base_plugin
from werkzeug.test import Client, TestResponse

from stabkit.dashboard.logs import Logs, roots_of
from stabkit.dashboard.plugin import StabilityPlugin

NAMES = [HOSTILE, LONG, "blocks.0.fc.weight", "blocks.0.fc.bias", "blocks.1.fc.weight", "Zoë.\u202ename"]
ROUTE = "/data/plugin/stabkit"


class Tab:
    """TensorBoard's own application around the plugin, and a client that asks until there is an answer."""

    def __init__(self, logdir: Path, **flags: Any) -> None:
        self.plugin = StabilityPlugin(base_plugin.TBContext(logdir=str(logdir)))
        self.client = Client(application.TensorBoardWSGI([self.plugin]))
        self.slowest = 0.0

    def get(self, route: str, **query: Any) -> TestResponse:
        began = time.perf_counter()
        reply = self.client.get(f"{ROUTE}/{route}", query_string=query)
        self.slowest = max(self.slowest, time.perf_counter() - began)
        return reply

    def told(self, route: str, **query: Any) -> dict[str, Any]:
        """What a route answers when it has an answer: {"stamp", "busy", "data"}."""
        end = time.monotonic() + 60
        while True:
            reply = self.get(route, **query)
            assert reply.status_code == 200, reply.text
            told: dict[str, Any] = json.loads(reply.text)
            if told["data"] is not None or time.monotonic() > end:
                return told

    def data(self, route: str, **query: Any) -> Any:
        return self.told(route, **query)["data"]

    def runs(self) -> dict[str, str]:
        """key by name; the first walk may take longer than an answer waits for it."""
        end = time.monotonic() + 30
        while not (runs := json.loads(self.get("runs").text)["runs"]) and time.monotonic() < end:
            pass
        return {run["name"]: run["key"] for run in runs}


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of them with hostile names."""
    root = tmp_path_factory.mktemp("logs")
    write_log(root / HOSTILE, 120, NAMES, spike=90).close()
    write_log(root / "deep" / "er" / "calm", 60, transformer_names(4), spike=0).close()
    return root


@pytest.fixture(scope="module")
def tab(logdir: Path) -> Iterator[Tab]:
    yield Tab(logdir)


def test_the_runs_are_found_wherever_they_lie(tab: Tab) -> None:
    assert sorted(tab.runs()) == [HOSTILE, "deep/er/calm"]
    assert tab.plugin.is_active()


def test_without_a_run_of_ours_the_tab_is_not_active(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.x").write_bytes(b"")
    assert not Tab(tmp_path).plugin.is_active()


def test_the_timeline_holds_the_spike(tab: Tab) -> None:
    figure = tab.data("timeline", run=tab.runs()[HOSTILE])
    loss = next(line for line in figure["lines"] if line["metric"] == "loss")
    assert (figure["first"], figure["last"]) == (1, 120)
    assert loss["steps"][loss["values"].index(max(loss["values"]))] == 90


def test_the_verdict_is_that_of_analyze(tab: Tab, logdir: Path) -> None:
    from stabkit import analyze, load

    verdict, found = tab.data("verdict", run=tab.runs()[HOSTILE]), analyze(load(logdir / HOSTILE)).findings
    assert found, "the spike must be found, or this test says nothing"
    assert [f["message"] for f in verdict["findings"]] == [f.message for f in found]
    assert [f["advice"] for f in verdict["findings"]] == [f.advice for f in found]
    assert [band["first"] for band in verdict["bands"]] == [f.first_step for f in found]
    assert verdict["movers"][0]["step"] == 90
    assert len(verdict["evidence"]) == len(found)
    calm = tab.data("verdict", run=tab.runs()["deep/er/calm"])
    assert calm["looked"][0] > 0 and calm["checked"]["clear"]


def test_the_heatmap_and_a_tensor_of_it(tab: Tab) -> None:
    run = tab.runs()[HOSTILE]
    (figure,) = tab.data("heatmaps", run=run)
    assert set(NAMES[:5]) <= set(figure["tensors"])
    metrics = {quantity["metric"] for quantity in figure["quantities"]}
    assert metrics >= {"update_ratio", "grad_norm", "rms_ratio", "exp_avg_sq_mean", "nonfinite"}
    row = figure["tensors"].index(LONG)
    tensor = tab.data("tensor", run=run, optimizer=0, row=row)
    assert tensor["name"] == LONG
    curve = next(curve for curve in tensor["curves"] if curve["metric"] == "grad_norm")
    assert curve["steps"][curve["values"].index(max(curve["values"]))] == 90
    assert {"update_ratio", "rms_ratio", "weight_norm"} <= {curve["metric"] for curve in tensor["curves"]}


def test_a_stretch_of_steps_is_answered_by_itself(tab: Tab) -> None:
    run = tab.runs()[HOSTILE]
    seen = {"first": 85, "last": 95}
    figure = tab.data("timeline", run=run, **seen)
    assert (figure["first"], figure["last"]) == (85, 95)
    assert all(line["steps"] == list(range(85, 96)) for line in figure["lines"])
    (heatmap,) = tab.data("heatmaps", run=run, **seen)
    assert (heatmap["first"], heatmap["last"], heatmap["width"], heatmap["columns"]) == (85, 95, 1, 11)
    tensor = tab.data("tensor", run=run, optimizer=0, row=heatmap["tensors"].index(LONG), **seen)
    assert all(curve["steps"] == list(range(85, 96)) for curve in tensor["curves"])
    assert tab.data("heatmaps", run=run, first=1000, last=2000) == []
    assert tab.get("heatmaps", run=run, first="x").status_code == 400


def test_one_quantity_of_the_tensors_can_be_had_first(tab: Tab) -> None:
    run = tab.runs()[HOSTILE]
    (whole,), (quick,) = tab.data("heatmaps", run=run), tab.data("heatmaps", run=run, quick=1)
    assert quick == whole | {"quantities": whole["quantities"][:1]}


def test_a_rules_page(tab: Tab) -> None:
    page = tab.data("rule", code="SK201")
    assert page["name"] == "loss-spike"
    assert [title for title, _ in page["sections"]][:2] == ["What it reports", "Why it matters"]


@pytest.mark.parametrize(
    ("route", "query"),
    [("rule", {"code": "SK999"}), ("tensor", {"optimizer": 0, "row": 99}), ("tensor", {"optimizer": 7, "row": 0}),
     ("tensor", {"optimizer": 0, "row": -1})],
)  # fmt: skip
def test_what_is_not_there_is_told(tab: Tab, route: str, query: dict[str, Any]) -> None:
    about = {"run": tab.runs()[HOSTILE]} if route == "tensor" else {}
    assert "there is no" in tab.data(route, **about, **query)["error"]


@pytest.mark.parametrize("name", ["..", "../..", "/etc", "deep/er/calm", HOSTILE, "", "%2e%2e", "0" * 16])
def test_a_run_is_asked_for_by_its_key_and_by_nothing_else(tab: Tab, name: str) -> None:
    for route in ("timeline", "heatmaps", "verdict", "tensor"):
        assert tab.get(route, run=name, optimizer=0, row=0).status_code == 404


@pytest.mark.parametrize("path", ["../plugin.py", "static/index.js", "..%2fplugin.py", "%2e%2e/plugin.py", "page.js"])
def test_only_the_files_of_the_tab_are_served(tab: Tab, path: str) -> None:
    assert tab.get(path).status_code == 404
    assert tab.get("index.js").status_code == 200


def test_a_link_out_of_the_log_directory_is_not_followed(tmp_path: Path) -> None:
    write_log(tmp_path / "elsewhere", 5, ["w"], spike=0).close()
    inside = tmp_path / "logs"
    write_log(inside / "own", 5, ["w"], spike=0).close()
    (inside / "linked").symlink_to(tmp_path / "elsewhere")
    (inside / "half").mkdir()
    (inside / "half" / "rank00000").symlink_to(tmp_path / "elsewhere" / "rank00000")
    assert list(Tab(inside).runs()) == ["own"]


def test_pages_of_other_sites_are_refused(tab: Tab) -> None:
    run = tab.runs()[HOSTILE]
    reply = tab.client.get(f"{ROUTE}/timeline", query_string={"run": run}, headers={"Sec-Fetch-Site": "cross-site"})
    assert reply.status_code == 403
    assert tab.client.post(f"{ROUTE}/runs").status_code == 405
    for route in ("runs", "index.js", "style.css"):
        headers = tab.get(route).headers
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_no_markup_leaves_the_server_as_markup(tab: Tab) -> None:
    for route in ("verdict", "heatmaps", "timeline"):
        tab.data(route, run=tab.runs()[HOSTILE])
        assert "<img" not in tab.get(route, run=tab.runs()[HOSTILE]).text
    assert tab.get("runs").content_type == "application/json"


def test_a_log_that_grows_is_read_again(tmp_path: Path) -> None:
    writer = write_log(tmp_path / "run", 20, ["w"], spike=0)
    tab = Tab(tmp_path)
    key = tab.runs()["run"]
    first = tab.told("timeline", run=key)
    assert first["data"]["last"] == 20
    writer.close()
    write_log(tmp_path / "run", 30, ["w"], spike=0, first=21).close()
    end = time.monotonic() + 30
    while (again := tab.told("timeline", run=key))["data"]["last"] == 20 and time.monotonic() < end:
        time.sleep(0.1)
    assert again["data"]["last"] == 30
    assert again["stamp"] != first["stamp"]


def test_a_damaged_log_and_one_that_is_gone_break_nothing(tmp_path: Path) -> None:
    write_log(tmp_path / "run", 20, ["w"], spike=0).close()
    write_log(tmp_path / "gone", 20, ["w"], spike=0).close()
    tab = Tab(tmp_path)
    runs = tab.runs()
    for path in (tmp_path / "run").rglob("*.npy"):
        path.write_bytes(os.urandom(5000))
    for path in sorted((tmp_path / "gone").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for route in ("timeline", "heatmaps", "verdict"):
        assert tab.data(route, run=runs["run"]) is not None
    end = time.monotonic() + 30
    while "there is no" not in (reply := tab.get("timeline", run=runs["gone"]).text) and time.monotonic() < end:
        time.sleep(0.05)
    assert "there is no" in reply, "no such run from the next walk on"


def test_a_process_that_dies_is_told_and_replaced(tab: Tab, logdir: Path) -> None:
    desk = tab.plugin._desk
    tab.data("rule", code="SK101")
    process = desk._lanes[""]._process
    process.kill()
    process.wait()
    assert tab.data("rule", code="SK102")["name"] == "oversized-update"


def test_roots() -> None:
    assert roots_of("/runs") == {"": Path("/runs")}
    assert roots_of("", "a:/runs/a,b:/runs/b") == {"a": Path("/runs/a"), "b": Path("/runs/b")}
    assert roots_of("s3://bucket/runs") == {}
    assert Logs({}).runs() == {}


def test_two_directories_with_names(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_log(tmp_path / name / "run", 3, ["w"], spike=0).close()
    logs = Logs(roots_of("", f"first:{tmp_path / 'x'},second:{tmp_path / 'y'}"))
    end = time.monotonic() + 30
    while not (found := logs.runs()) and time.monotonic() < end:
        pass
    assert [run.name for run in found.values()] == ["first/run", "second/run"]


def test_importing_the_plugin_is_light(root: Path) -> None:
    code = (
        "import sys, tensorboard.plugins.base_plugin, tensorboard.backend.http_util, stabkit.dashboard.plugin; "
        "print([name for name in ('torch', 'scipy', 'rich', 'stabkit.analyzers', 'hooks') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tensorboard_finds_the_plugin() -> None:
    from tensorboard import default

    assert StabilityPlugin in default.get_dynamic_plugins()


@pytest.mark.slow
def test_a_long_log_is_answered_within_a_second_each_time(tmp_path: Path) -> None:
    """Not that it is drawn within a second: until it is, the answer is that it is not known yet."""
    write_log(tmp_path / "long", 6000, transformer_names(300), spike=4321).close()
    tab = Tab(tmp_path)
    key = tab.runs()["long"]
    loss = tab.data("timeline", run=key)["lines"][0]
    assert loss["steps"][loss["values"].index(max(loss["values"]))] == 4321
    (figure,) = tab.data("heatmaps", run=key)
    assert len(figure["tensors"]) == 300
    assert tab.data("verdict", run=key)["steps"] == 6000
    assert tab.data("tensor", run=key, optimizer=0, row=17)["curves"]
    assert tab.slowest < 1
