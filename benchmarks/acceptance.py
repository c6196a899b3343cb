"""What must work wherever stabkit is installed: a training is watched, its log read, judged, drawn and found by TensorBoard.

    python benchmarks/acceptance.py FOLDER

Run by `benchmarks.compat` in each environment. Prints the versions it ran with as one JSON object; raises where anything fails.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

PACKAGES = ("torch", "numpy", "scipy", "click", "rich", "tensorboard", "protobuf", "google-crc32c")


def train(logdir: Path, watched: bool) -> list[bytes]:
    """A small model in mixed precision with all that is looked at, its last steps broken; the bits of its weights."""
    from contextlib import nullcontext

    import torch
    from torch import nn

    import stabkit

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with stabkit.watch(model, optimizer, logdir, forward=True) if watched else nullcontext():
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
        for step in range(80):
            data = torch.randn(32, 8)
            with torch.autocast("cpu", torch.bfloat16):
                loss = (model(data).float() - data.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss * (1e4 if step == 60 else 1)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
    return [p.detach().numpy().tobytes() for p in model.parameters()]


def main() -> None:
    folder = Path(sys.argv[1])
    assert train(folder / "run", True) == train(folder / "none", False), "the watched training has other bits"
    import numpy as np

    import stabkit

    run = stabkit.load(folder / "run")
    assert run.steps.tolist() == list(range(1, 81)) and not run.notes, run.notes
    assert not [event for event in run.events if event["event"] in ("fault", "lost", "not_shown")], run.events
    unseen = [event["what"] for event in run.events if event["event"] == "unseen"]
    for metric in ("loss", "grad_norm", "clip_coefficient", "loss_scale", "update_norm"):
        assert np.isfinite(run.series(metric).values).all(), metric
    diagnosis = stabkit.analyze(run)
    assert not [outcome for outcome in diagnosis.outcomes if str(outcome.status) == "failed"], diagnosis.outcomes
    assert "SK201" in {finding.rule for finding in diagnosis.findings}, diagnosis.findings
    for command in (["analyze", "--format", "json"], ["report", "-o", str(folder / "page.html")], ["info"]):
        done = subprocess.run([sys.executable, "-m", "stabkit", command[0], str(folder / "run"), *command[1:]],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    assert (folder / "page.html").read_text().lower().startswith("<!doctype html>")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run"))
    events.Reload()
    assert len(events.Tags()["scalars"]) > 5
    (plugin,) = [found for found in entry_points(group="tensorboard_plugins") if found.name == "stabkit"]
    assert plugin.load().plugin_name == "stabkit"
    from stabkit.hooks.statistics import backend

    versions = {name: version(name) for name in PACKAGES}
    print(json.dumps(versions | {"python": platform.python_version(), "statistics": backend(), "unseen": unseen}))


if __name__ == "__main__":
    main()
