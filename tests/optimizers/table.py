"""Writes docs/optimizers.md from what watched runs of every optimizer really recorded: `python -m tests.optimizers.table`."""

from __future__ import annotations

import importlib.util
import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import stabkit
from tests.optimizers.training import Entry, train
from tests.optimizers.zoo import FRAMEWORKS, HANDMADE, TORCH

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
TITLES = {"torch": TORCH, "written by hand": HANDMADE, "other packages": FRAMEWORKS}

TEXT = """# Optimizers

Which quantities are recorded of which optimizer, and how exactly. This page is written by `python -m tests.optimizers.table`
from watched runs of each of them; the tests fail where it is not what they find. All of these runs end in the same bits as the
unwatched ones. Torch's own database of optimizers, with every configuration the CPU runs, passes the same tests.

**How the update is known.** Torch's Adam and AdamW, and whatever else turns out to be an Adam, have their update worked out
from the state they keep (`update_norm`: the update the optimizer *intended*); nothing is copied. An optimizer that is not
torch's is tried as each of fifteen kinds of Adam: with or without bias correction, decay before or after the update or in the
gradient, eps inside or outside. It is believed after it has told two steps with a rate above zero, element by element on about
4,000 elements of each tensor, and tried again every 1,000 measured steps, as torch's own are. If it fails once, the log says so
(event `update-measured`) and its updates are measured from then on; what was worked out since the last trial may be wrong.
Weights of 16 bits prove nothing, their rounding being larger than the update.

Any other update is *measured* (`applied_update_norm`): the weights are copied before each measured step and compared after it.
That takes memory for one more set of weights during the step; `every=` makes it rare. `exact_updates=True` measures the update
of every optimizer. `update_ratio` rests on the measured update where there is one, and says so.

**Gradients** are those before the step where an optimizer may use them as scratch space, as foreach SGD with nesterov does. Of
sparse gradients duplicate entries are added up first. **Moments** are recorded only where it is certain what they are. RAdam
divides by its second moment from about the sixth step on; `rms_ratio` is recorded from the first.

- *gradient*: norms, extremes, zeros and nonfinite elements; *weights* are recorded of every optimizer.
- *m*: `exp_avg_norm`, `grad_momentum_cosine`. *v̂*: `exp_avg_sq_mean`, `_min`, `_max`, `rms_ratio`, `eps_fraction`.
- *error*: the largest relative error of the update's norm, over all tensors and steps of the run, against copies in float64;
  rounded up to a power of ten. *count*: whether the optimizer's own count of steps is recorded.
"""


@dataclass(frozen=True)
class Row:
    """What a run recorded of an optimizer.

    Attributes:
        cells: Gradient, m, v̂, update, count.
        error: The largest relative error of the norm of an update.
    """

    cells: tuple[str, ...]
    error: float


def available(entry: Entry) -> bool:
    """Whether the package that an optimizer comes from is installed."""
    return not entry.needs or importlib.util.find_spec(entry.needs) is not None


def row_of(entry: Entry) -> Row:
    """Train with an optimizer and see what was recorded."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        truth = train(entry, Path(folder) / "run")
        run = stabkit.load(Path(folder) / "run")

    def known(metric: str) -> str:
        return "yes" if run.has(metric, "tensor") else "–"

    moved, weight = truth.table("moved"), truth.table("weight")
    got = run.table("update_ratio").values[1:] * weight
    there = (weight > 0) & (moved > 0)
    error = float(np.max(np.abs(got / np.where(moved > 0, moved, 1) - 1)[there]))
    derived = run.has("update_norm", "tensor")
    proved = derived and run.has("applied_update_norm")
    update = "worked out, after two proofs" if proved else "worked out" if derived else "measured"
    count = "yes" if run.has("applied_steps") else "–"
    return Row((known("grad_norm_used"), known("exp_avg_norm"), known("exp_avg_sq_mean"), update, count), error)


def bound(error: float) -> str:
    """The next power of ten."""
    return "0" if error == 0 else f"1e{math.ceil(math.log10(error))}"


def rows_of(entries: Mapping[str, Entry]) -> dict[str, Row]:
    """A row per optimizer, by name and implementations; those that differ in nothing share one."""
    shared: dict[tuple[str, tuple[str, ...]], tuple[list[str], float]] = {}
    for name, entry in entries.items():
        if available(entry):
            base, implementation = _split(name) if entries is TORCH else (name, "")
            row = row_of(entry)
            names, worst = shared.get((base, row.cells), ([], 0.0))
            shared[base, row.cells] = ([*names, *([implementation] if implementation else [])], max(worst, row.error))
    return {
        f"{base}: {', '.join(names)}" if names else base: Row(cells, worst) for (base, cells), (names, worst) in shared.items()
    }


def _split(name: str) -> tuple[str, str]:
    """The name of a torch optimizer and its implementation, "" where there is but one."""
    base, _, implementation = name.rstrip(")").partition(" (")
    return base, implementation


def line_of(name: str, row: Row) -> str:
    """A line of the table."""
    *cells, count = row.cells
    return f"| {' | '.join([name, *cells, bound(row.error), count])} |"


def page() -> str:
    """The whole page, without the optimizers of packages that are not installed."""
    parts = [TEXT]
    for title, entries in TITLES.items():
        lines = [line_of(name, row) for name, row in rows_of(entries).items()]
        head = ["| optimizer | gradient | m | v̂ | update | error | count |", "|---|---|---|---|---|---|---|"]
        parts.append("\n".join([f"## {title.capitalize()}\n", *head, *lines, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    absent = sorted({entry.needs for entry in FRAMEWORKS.values() if not available(entry)})
    if absent:
        sys.exit(f"without {', '.join(absent)} the page would lose rows: pip install -e '.[frameworks]'")
    PAGE.write_text(page(), encoding="utf-8")
