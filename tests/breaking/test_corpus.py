"""Every log that fuzzing has kept is read again: each reaches a line that no other reaches, or once broke something."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import corpus
from benchmarks.fuzz.targets import TARGETS, ask, bounded, judge, put


@pytest.mark.parametrize("name", [*TARGETS, "crashes"])
def test_what_fuzzing_kept_is_read_or_refused(name: str, tmp_path: Path) -> None:
    logs = corpus.read(name)
    assert logs, "the corpus is part of the repository"
    for number, log in enumerate(logs):
        with bounded():
            ask(put(log, tmp_path / f"{number}" / "log"))


@pytest.mark.parametrize("name", [*TARGETS, "crashes"])
@pytest.mark.slow
def test_what_fuzzing_kept_is_judged_and_drawn(name: str, tmp_path: Path) -> None:
    for number, log in enumerate(corpus.read(name)):
        with bounded(20.0):
            run = ask(put(log, tmp_path / f"{number}" / "log"))
            if run is not None:
                judge(run)
