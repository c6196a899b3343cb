"""Copies the runs and labels; `python -m benchmarks.corpus --part tune --only 'mini-*'` must have made them."""

from __future__ import annotations

import shutil

import stabkit
from benchmarks.corpus import RUNS
from tests.cases import save_case
from tests.cases.corpus import HERE, NAMES

for name in NAMES:
    save_case(name, stabkit.load(RUNS / name / "run"), HERE)
    shutil.copy(RUNS / name / "label.json", HERE / f"{name}.json")
