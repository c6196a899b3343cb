"""What published tools say of the same runs, each given the loss and the gradient norm as CSV on its own command line.

They look at the whole log, afterwards: a step that they name is where they see the trouble, and is no prediction. Where a tool
is not installed (`pip install -e '.[benchmarks]'`) the score says so and goes on.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.score.bootstrap import Resampled
from benchmarks.score.curves import Curves
from benchmarks.score.match import HORIZONS, merged
from benchmarks.score.tally import Seen, figures

__all__ = ["TOOLS", "Said", "Tool", "ask", "published", "write_csv"]

SECONDS = 120


@dataclass(frozen=True)
class Said:
    """What a tool said of one run.

    Attributes:
        alarmed: Whether it warned of anything at all.
        steps: The steps it named, increasing.
    """

    alarmed: bool
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tool:
    """A published tool.

    Attributes:
        name: Of its package and its command.
        arguments: What follows the command; {} stands for the file.
        read: Its JSON, as what it said.
    """

    name: str
    arguments: tuple[str, ...]
    read: Callable[[Any], Said]


def _losslint(told: Any) -> Said:
    found = [finding for finding in told["findings"] if finding["severity"] in ("error", "warning")]
    return _said(len(found), [step for finding in found for step in finding["details"].get("steps", ())])


def _runmedic(told: Any) -> Said:
    found = [finding for run in told for finding in run["findings"] if finding["severity"] in ("critical", "warning")]
    steps = [finding["step"] for finding in found if finding.get("step") is not None]
    for finding in found:
        for line in finding["evidence"]:
            if line.startswith("spike steps:"):
                steps += re.findall(r"\d+", line)
    return _said(len(found), steps)


def _trainproof(told: Any) -> Said:
    found = [finding for report in told["reports"] for finding in report["findings"] if finding["level"] in ("FAIL", "WARN")]
    steps: list[str] = []
    for finding in found:
        listed = re.search(r"^Steps: \[([^\]]*)\]", finding["evidence"])
        steps += listed[1].split(",") if listed else re.findall(r"first at step ([\d.e+]+\d)", finding["evidence"])
    return _said(len(found), steps)


def _said(count: int, steps: Sequence[float | str]) -> Said:
    return Said(bool(count), tuple(sorted({int(float(step)) for step in steps})))


TOOLS = (
    Tool("losslint", ("check", "{}", "--format", "json"), _losslint),
    Tool("runmedic", ("diagnose", "{}", "--json"), _runmedic),
    Tool("trainproof", ("doctor", "{}", "--json"), _trainproof),
)


def write_csv(curves: Curves, file: Path) -> None:
    """The curves that these tools read: step, loss and, where it was recorded, grad_norm."""
    columns: dict[str, Sequence[float]] = {"step": curves.steps.tolist(), "loss": curves.loss.tolist()}
    if not np.isnan(curves.grad_norm).all():
        columns["grad_norm"] = curves.grad_norm.tolist()
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([list(columns), *zip(*columns.values(), strict=True)])


def ask(tool: Tool, file: Path) -> Said:
    """Run a tool on a file.

    Raises:
        RuntimeError: what it printed is no answer.
    """
    command = [_command(tool.name), *(word.replace("{}", str(file)) for word in tool.arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)  # the exit code tells of findings too
    try:
        return tool.read(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"{' '.join(command)}: {error}: {(done.stderr or done.stdout)[-500:]}") from error


def _command(name: str) -> str:
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise RuntimeError(f"{name} is installed, but not its command")
    return found


def published(seen: Sequence[Seen], draws: Resampled, jobs: int) -> dict[str, Any]:
    """Every tool, and stabkit, on the runs that have a loss; by run, and by event where a step is named.

    Runs whose data made the loss rise are left out: tools that name no step could not be excused there.
    A run that a tool cannot read counts as one it said nothing of, and is counted.
    """
    known = [one for one in seen if one.curves.known and not one.case.excused_steps]
    draws = draws if len(known) == len(seen) else Resampled(len(known))
    own = [Said(bool(one.alarms), tuple(alarm.step for alarm in one.alarms)) for one in known]
    report = {f"stabkit {version('stabkit')}": _figures(known, own, draws, together=False)}
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.csv" for i in range(len(known))]
        for one, file in zip(known, files, strict=True):
            write_csv(one.curves, file)
        for tool in TOOLS:
            try:
                name = f"{tool.name} {version(tool.name)}"
            except PackageNotFoundError:
                report[tool.name] = {"why_not": f"not installed: {Path(sys.executable).name} -m pip install {tool.name}"}
                continue
            with ThreadPoolExecutor(jobs) as pool:
                answers = list(pool.map(partial(_answer, tool), files))
            report[name] = _figures(known, [said or Said(False) for said in answers], draws)
            report[name]["unread"] = answers.count(None)
    return report


def _answer(tool: Tool, file: Path) -> Said | None:
    try:
        return ask(tool, file)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return None


def _figures(seen: Sequence[Seen], said: Sequence[Said], draws: Resampled, together: bool = True) -> dict[str, Any]:
    sick = np.array([not one.case.healthy for one in seen], dtype=float)
    alarmed = np.array([one.alarmed for one in said], dtype=float)
    named = np.array([bool(one.steps) for one in said], dtype=float)
    told = figures(seen, [merged(one.steps).tolist() if together else one.steps for one in said], draws)
    return {
        "sick_alarmed": draws.ratio(alarmed * sick, sick).data(),
        "healthy_alarmed": draws.ratio(alarmed * (1 - sick), 1 - sick).data(),
        "sick_named": draws.ratio(named * sick, alarmed * sick).data(),
        **{f"H{horizon}": {"detected": told[f"H{horizon}"]["detected"]} for horizon in HORIZONS},
    }
