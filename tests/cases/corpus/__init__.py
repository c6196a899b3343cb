"""A few recorded runs of the tuning part of the fault corpus, with their labels.

`python -m tests.cases.corpus` records them again from benchmarks/corpus/runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stabkit.runlog import RunLog
from tests.cases import load_case

__all__ = ["HERE", "LAST", "NAMES", "load"]

HERE = Path(__file__).parent / "data"
NAMES = (
    "mini-s0", "mini-nowarmup-50-s0", "mini-init-5-s0", "mini-gradient-50-s0", "mini-noise-30-s0", "mini-grow-fp16-30-s0",
    "mini-underflow-1e-06-s0", "mini-bf16-0.02-s0", "mini-eps-1-s0", "mini-zero-division-1-s0", "mini-jump-50-s0",
    "mini-rate-4-s0", "mini-fp16-65536-s0", "text-s0", "text-nowarmup-30-s0", "full-s0", "full-beta2-0.999-s1",
    "full-beta2-0.997-s0",
)  # fmt: skip
LAST = {"text-s0": 100, "text-nowarmup-30-s0": 100, "full-s0": 450, "full-beta2-0.999-s1": 660, "full-beta2-0.997-s0": 560}
"""The last step of those that are not recorded whole."""


def load(name: str) -> tuple[RunLog, dict[str, Any]]:
    """The run and its label, of those cut short with the events up to there."""
    label: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    return load_case(name, HERE), label
