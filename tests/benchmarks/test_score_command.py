"""The command on real run logs: what it writes can be read, and what it measured of a rule reaches the findings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import stabkit
from benchmarks.score.__main__ import main
from stabkit.analyzers.measured import FILE, confidences, sentence, with_confidence

STEPS, AT = 120, 80


def train(run: Path, sick: bool, seed: int) -> None:
    """Noisy regression on a few points; the sick one meets a batch far from all others."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with stabkit.watch(model, optimizer, run, tensorboard=False) as watch:
        for step in range(1, STEPS + 1):
            x = torch.randn(32, 4)
            loss = ((model(x) - x.sum(1, keepdim=True) - 0.3 * torch.randn(32, 1)) ** 2).mean()
            if sick and step == AT:
                loss = loss * 50
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.log(loss=loss.item())


def label(name: str, sick: bool) -> dict[str, Any]:
    event = {"onset": AT, "end": AT, "kind": "spike", "class": "batch", "rules": ["SK201", "SK203"], "tensors": []}
    return {"schema": 1, "id": name, "part": "tune", "family": "regression", "fault": "loss" if sick else None,
            "healthy": not sick, "hard_negative": False, "seed": 0, "twin": None, "remedies_apply": False,
            "events": [event] if sick else [], "final_loss": 1.0}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the command wrote of seven runs, five of them sick."""
    folder = tmp_path_factory.mktemp("score")
    for seed in range(7):
        name = f"run-{seed}"
        train(folder / "runs" / name / "run", seed < 5, seed)
        (folder / "runs" / name / "label.json").write_text(json.dumps(label(name, seed < 5)))
    before = FILE.read_bytes()
    main(["--part", "tune", "--runs", str(folder / "runs"), "--out", str(folder), "--jobs", "1", "--shifts", "20",
          "--no-published", "--remedies", "--write-confidence", str(folder / "measured.json")])  # fmt: skip
    assert FILE.read_bytes() == before
    yield folder


def test_the_figures_are_those_of_the_runs(results: Path) -> None:
    data = json.loads((results / "accuracy.json").read_text())
    assert (data["about"]["runs"], data["about"]["healthy"], data["about"]["events"]) == (7, 2, 5)
    assert data["stabkit"]["H8"]["detected"]["value"] == 1
    assert data["stabkit"]["H8"]["right_rule"]["value"] == data["stabkit"]["H8"]["right_rule_of_all"]["value"] == 1
    assert data["families"].keys() == {"regression"} and data["remedies"]["runs"] == []
    page = (results / "ACCURACY.md").read_text()
    assert "Part `tune`: 7 runs, 2 of them healthy (240 steps), 5 events." in page
    assert "| regression | 7 | 5 | 100" in page


def test_confidence_is_written_where_asked_and_reaches_findings(results: Path) -> None:
    file = results / "measured.json"
    known = json.loads(file.read_text())
    spoke = known["rules"]["SK201"]
    assert known["part"] == "tune" and spoke["runs"] >= 5 and spoke["precision"] >= 5 / spoke["findings"] - 1e-4
    assert confidences(file)["SK201"] == (spoke["precision"], spoke["low"], spoke["high"])
    assert sentence("SK201", file).endswith("Thresholds were set on the same runs: this is optimistic.")
    diagnosis = stabkit.analyze(stabkit.load(results / "runs" / "run-0" / "run"))
    spike = next(f for top in diagnosis.findings for f in (top, *top.consequences) if f.rule == "SK201")
    bare = with_confidence(spike, results / "no-such-file.json")
    assert bare.confidence is spike.confidence
    if spike.confidence is None:  # until the catalogue itself is measured
        assert with_confidence(spike, file).confidence == confidences(file)["SK201"]
