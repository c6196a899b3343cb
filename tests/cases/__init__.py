"""Recordings of real training runs, sick and healthy, on which the rules are tested.

`recipes.py` says how each run was trained and what must be found in it; `python -m tests.cases.record` trains them again and
writes `data/<name>.npz`; `load_case` reads one back as a `RunLog`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from stabkit.runlog import RunLog, Stream, TensorInfo

DATA = Path(__file__).parent / "data"


def save_case(name: str, run: RunLog, data: Path = DATA) -> None:
    """Write a run's records. Numbers keep 20 bits of mantissa (1e-6): they compress to a third."""
    stream = run.stream
    about = {
        "facts": dict(run.facts),
        "events": [e for e in run.events if e.get("event") == "autocast"],
        "optimizer": stream.optimizer,
        "tensors": [[t.name, list(t.shape), t.dtype, t.role, t.group] for t in run.tensors],
    }
    arrays: dict[str, Any] = {"steps": stream.steps, "tensor_steps": stream.tensor_steps}
    arrays |= {f"step/{name}": values for name, values in stream.step_values.items() if name != "time"}
    arrays |= {f"group/{name}": values for name, values in stream.group_values.items()}
    columns = {name: np.asarray(stream.columns[name]) for name in stream.columns}
    arrays |= {f"column/{name}": values for name, values in columns.items() if not np.isnan(values).all()}
    for metric, (at, values) in run.scalars.items():
        arrays |= {f"beside/{metric}": np.stack([at.astype(np.float64), values])}
    rounded = {key: _rounded(value) if value.dtype == np.float64 else value for key, value in arrays.items()}
    data.mkdir(exist_ok=True)
    np.savez_compressed(data / f"{name}.npz", about=np.array(json.dumps(about)), **rounded)


def load_case(name: str, data: Path = DATA) -> RunLog:
    """The recorded run as `stabkit.load` would give it."""
    with np.load(data / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    about = json.loads(str(arrays.pop("about")))

    def part(prefix: str) -> dict[str, Any]:
        return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}

    tensors = tuple(TensorInfo(n, tuple(shape), dtype, role, group) for n, shape, dtype, role, group in about["tensors"])
    stream = Stream(
        arrays["steps"], part("step/"), part("group/"), tensors, arrays["tensor_steps"], part("column/"), about["optimizer"]
    )
    beside = {metric: (at.astype(np.int64), values) for metric, (at, values) in part("beside/").items()}
    return RunLog(
        path=name, source="stabkit", streams=(stream,), facts=about["facts"], events=tuple(about["events"]), scalars=beside
    )


def _rounded(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    bits = values.view(np.uint64)
    kept = (bits + np.uint64(1 << 31)) & ~np.uint64((1 << 32) - 1)
    return np.where(np.isfinite(values), kept.view(np.float64), values)
