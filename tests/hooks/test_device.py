"""A model on a device from which nothing can be carried without waiting: no number rather than a wait, and it is said once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stabkit
from stabkit.watch import StabkitWarning


def test_tensors_off_the_host_are_not_read_and_it_is_said_once(tmp_path: Path) -> None:
    """The meta device stands for all that are neither CPU nor CUDA: every read of a value raises there."""
    model = nn.Linear(4, 2, device="meta")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    with pytest.warns(StabkitWarning, match="parameters lie on meta, where this version measures no tensors") as warned, stabkit.watch(model, optimizer, tmp_path / "run"):
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(3, 4, device="meta")).sum().backward()
            optimizer.step()
    assert len([w for w in warned if w.category is StabkitWarning]) == 1
    run = stabkit.load(tmp_path / "run")
    assert run.steps.tolist() == [1, 2, 3, 4, 5]
    assert run.series("lr").values.tolist() == [1e-3] * 5
    assert np.isnan(run.series("loss").values).all() if run.has("loss") else True
    assert [e["event"] for e in run.events if e["event"] in ("fault", "unmeasured")] == ["unmeasured"]
    assert stabkit.analyze(run).exit_code == 0
