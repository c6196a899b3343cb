"""Nothing leaves the machine, and nothing of the data or the weights goes into the log but sums, counts and extrema."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stabkit

AUDIT = """
import os, sys

def look(event, arguments):
    if event.startswith(("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
                         "socket.gethostbyname", "urllib.", "http.", "ftplib.", "smtplib.")):
        file = os.open(os.environ["AUDIT"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(file, f"{os.getpid()} {event} {arguments!r}\\n".encode())
        os.close(file)

sys.addaudithook(look)
with open(os.environ["AUDIT"] + ".seen", "a") as file:
    file.write(f"{os.getpid()} {sys.argv[:1]} {sys.orig_argv[-4:]}\\n")
"""
EVERYTHING = """
import sys
from pathlib import Path
from tests.live.live_training import train
from stabkit.cli import commands

logdir = Path(sys.argv[1])
found = []
train(logdir, 60, found.append, bad=40)
assert found
train(logdir / "again", 30)
for command in (["analyze", logdir], ["analyze", logdir, "--format", "json"], ["info", logdir],
                ["report", logdir, "--output", logdir / "page.html"], ["compare", logdir, logdir / "again"]):
    try:
        commands([str(part) for part in command], standalone_mode=False)
    except SystemExit:
        pass
"""


@pytest.mark.slow
def test_no_process_of_ours_opens_a_connection(tmp_path: Path) -> None:
    """Audited from their start: the training, the process that judges it meanwhile, and what reads its log."""
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)]), "AUDIT": str(tmp_path / "audit"),
                                "OMP_NUM_THREADS": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", EVERYTHING, str(tmp_path / "run")], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    audited = (tmp_path / "audit.seen").read_text().splitlines()
    assert len(audited) >= 2, "the training, and what judges it"
    told = (tmp_path / "audit").read_text() if (tmp_path / "audit").exists() else ""
    assert told == ""


def patterns(tensor: torch.Tensor) -> set[bytes]:
    """What would give its elements away: each as eight bytes, two neighbours as four bytes each."""
    flat = tensor.detach().double().flatten().numpy()
    neighbours = [flat.astype(np.float32)[i : i + 2].tobytes() for i in range(len(flat) - 1)]
    return {value.tobytes() for value in flat if value} | set(neighbours)


def extrema(tensor: torch.Tensor) -> set[bytes]:
    flat = tensor.detach().double().flatten()
    values = [flat.abs().max(), flat.min(), flat.max(), flat.abs().min(), flat.square().max(), flat.square().min()]
    return {np.float64(value).tobytes() for value in values}


@pytest.mark.parametrize("options", [{}, {"exact_updates": True, "forward": True}], ids=["as usual", "all that can be seen"])
def test_no_number_of_data_weights_gradients_or_moments_is_in_the_log(options: dict[str, bool], tmp_path: Path) -> None:
    """Every element of every tensor at every step is looked for in every byte of the log; but for extrema, as documented."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 8))
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # a fresh norm is all ones and zeros, which are everywhere
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    secret: set[bytes] = set()
    allowed: set[bytes] = set()
    texts: set[str] = set()

    def keep(tensor: torch.Tensor, with_extrema: bool = True) -> None:
        secret.update(patterns(tensor))
        texts.update(repr(float(value))[:12] for value in tensor.detach().flatten()[:50])
        if with_extrema:
            allowed.update(extrema(tensor))

    with stabkit.watch(model, optimizer, tmp_path / "run", **options):
        for _ in range(5):
            data, target = torch.randn(32, 12), torch.randint(0, 8, (32,))
            keep(data, with_extrema=False)
            for parameter in model.parameters():
                keep(parameter)
            out = model(data)
            keep(out, with_extrema=False)
            optimizer.zero_grad()
            nn.functional.cross_entropy(out, target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for parameter in model.parameters():
                assert parameter.grad is not None
                keep(parameter.grad)
            optimizer.step()
            for state in optimizer.state.values():
                keep(state["exp_avg"]), keep(state["exp_avg_sq"])
    assert len(secret) > 10_000
    for path in (tmp_path / "run").rglob("*"):
        if not path.is_file():
            continue
        held = path.read_bytes()
        windows = {held[i : i + 8] for i in range(len(held) - 7)}
        assert not windows & (secret - allowed), path
        if path.suffix in (".json", ".jsonl"):
            assert not [text for text in texts if text in held.decode()], path


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """The log of a training with one more file of its own: the search that finds nothing above finds this."""
    weight = torch.randn(4, 4)
    held = b"x" * 3 + weight.numpy().tobytes()
    assert {held[i : i + 8] for i in range(len(held) - 7)} & patterns(weight)
    assert json.dumps(float(weight[0, 0])).startswith(repr(float(weight[0, 0]))[:12])
