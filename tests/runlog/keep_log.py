"""Keeps a log of the format as it is now, to be read for ever: `python -m tests.runlog.keep_log`, once for each release.

A log that was kept is never written again: what a released stabkit wrote is what people have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import stabkit
from stabkit.runlog.format import SCHEMA_VERSION
from tests.breaking.training import train

LOGS = Path(__file__).parent / "logs"
__all__ = ["LOGS", "told"]


def told(run: stabkit.RunLog) -> dict[str, Any]:
    """What is read out of a log, as JSON: numbers as they are, to the last digit."""

    def numbers(values: Any) -> Any:
        return [str(value) for value in np.asarray(values, np.float64).ravel().tolist()]

    stream = run.stream
    return {
        "steps": run.steps.tolist(),
        "attempts": run.attempts,
        "tensors": [tensor.name for tensor in stream.tensors],
        "tensor_steps": stream.tensor_steps.tolist(),
        "step_values": {name: numbers(values) for name, values in stream.step_values.items() if name != "time"},
        "group_values": {name: numbers(values) for name, values in stream.group_values.items()},
        "columns": {name: numbers(stream.columns[name]) for name in stream.columns},
        "scalars": {name: [steps.tolist(), numbers(values)] for name, (steps, values) in run.scalars.items()},
        "marks": [event["note"] for event in run.events if event["event"] == "mark"],
        "optimizer": stream.optimizer,
        "notes": list(run.notes),
    }


def main() -> None:
    folder = LOGS / f"schema{SCHEMA_VERSION}-{stabkit.__version__}"
    if folder.exists():
        sys.exit(f"{folder} is kept already, and stays as it is")
    train(folder / "log", scaled=True, tensorboard=False)
    train(folder / "log", scaled=True, tensorboard=False, steps=4)
    (folder / "log" / ".lock").unlink()
    (folder / "told.json").write_text(json.dumps(told(stabkit.load(folder / "log")), indent=1) + "\n")


if __name__ == "__main__":
    main()
