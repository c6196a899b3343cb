"""`run.plot()`: a run as a notebook shows it, in a frame of its own.

The frame holds the page that `stabkit report` writes: no script of it reaches the notebook, no name of it meets another's, so
that it may be shown twice; nothing is loaded. It keeps its pictures when the notebook is saved, exported or sent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stabkit.analyzers import analyze
from stabkit.errors import UsageError
from stabkit.finding import Diagnosis
from stabkit.report.escape import framed
from stabkit.report.figures import curve
from stabkit.report.html import page
from stabkit.report.shell import document, notice
from stabkit.report.text import summary
from stabkit.report.words import printable, shortened
from stabkit.runlog import RunLog

__all__ = ["Plot", "plot"]

_POINTS = 1800
_HEIGHT, _HEIGHT_OF_CURVE = 720, 310


class Plot:
    """What `run.plot()` gives back; a notebook shows it, a terminal says what it is.

    Args:
        html: The page.
        told: The line that stands for it where only text can be shown.
        height: Of the frame, in pixels.
    """

    def __init__(self, html: str, told: str, height: int) -> None:
        self.html, self._told, self._height = html, told, height

    def save(self, path: str | Path) -> None:
        """Write the page to a file of its own. Raises OSError."""
        Path(path).write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        return framed(self.html, self._height)

    def __repr__(self) -> str:
        return self._told


def plot(run: RunLog, *metrics: str, tensor: str | None = None, height: int | None = None) -> Plot:
    """A run for a notebook: verdict, timeline, heatmap and findings; or, given names, the curves of these quantities.

    Args:
        run: The run.
        metrics: Names of the vocabulary or of scalars, such as "loss"; none shows the report.
        tensor: Whose quantities; None asks for those of the whole step.
        height: Of the frame, in pixels.

    Raises:
        MissingMetricError: a quantity was not recorded; the message names what would have recorded it.
        UsageError: there is no such tensor, or one was named without a quantity.
    """
    if not metrics:
        if tensor is not None:
            raise UsageError(f'name the quantity of {tensor} to be drawn, such as run.plot("update_ratio", tensor=...)')
        diagnosis: Diagnosis = analyze(run)
        told = f"{summary(diagnosis).plain} (a notebook shows the page; .save(path) writes it)"
        return Plot(page(run, diagnosis), told, height or _HEIGHT)
    name = run.path or "this run"
    pictures = [_picture(run, metric, tensor, name) for metric in metrics]
    frames = "".join(f'<figure class="chart pair" data-pair="{place}"></figure>' for place in range(len(pictures)))
    html = document(name, [frames, notice()], pictures, ("chart.js", "curves.js", "pairs.js"))
    of = f" of {printable(tensor)}" if tensor else ""
    told = f"{printable(name)}: {', '.join(metrics)}{of} (a notebook shows the curves; .save(path) writes them)"
    return Plot(html, told, height or 40 + _HEIGHT_OF_CURVE * len(pictures))


def _picture(run: RunLog, metric: str, tensor: str | None, name: str) -> dict[str, Any]:
    try:
        series = run.series(metric, tensor)
    except KeyError as error:
        raise UsageError(str(error.args[0])) from None
    line = curve(series, _POINTS)
    known = np.isfinite(line["values"]).any()
    title = metric + (f" of {shortened(tensor, 80)}" if tensor else "") + ("" if known else " (no numbers)")
    return {"title": title, "runs": [{"name": name, "line": line}], "linear": metric == "lr"}
