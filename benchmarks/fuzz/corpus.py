"""The corpus on disk: a file a target, a line a log, its files in base64."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from benchmarks.fuzz.mutate import Files

__all__ = ["FOLDER", "append", "read", "write"]

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "breaking" / "corpus"


def read(name: str) -> list[Files]:
    """The logs kept under a name."""
    path = FOLDER / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{file: base64.b64decode(data) for file, data in json.loads(line).items()} for line in lines]


def write(name: str, logs: list[Files]) -> None:
    """Keep these logs under a name, and nothing else."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.jsonl").write_text("".join(_line(log) for log in logs))


def append(name: str, log: Files) -> None:
    """Keep one more."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / f"{name}.jsonl", "a") as file:
        file.write(_line(log))


def _line(log: Files) -> str:
    return json.dumps({name: base64.b64encode(data).decode() for name, data in log.items()}) + "\n"
