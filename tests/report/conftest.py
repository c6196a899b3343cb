"""A console of any width that keeps what was printed, and findings to print."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from stabkit.finding import Diagnosis, Finding, Outcome, Severity, Status

Draw = Callable[..., str]


@pytest.fixture
def draw() -> Draw:
    """Calls a reporter with its arguments and a console of a width, and gives back what it printed."""

    def draw(reporter: Callable[..., Any], *args: Any, width: int = 80, colours: bool = False, **options: Any) -> str:
        file = io.StringIO()
        system = "truecolor" if colours else None
        reporter(*args, Console(file=file, width=width, color_system=system, force_terminal=colours), **options)
        return file.getvalue()

    return draw


def finding(**details: Any) -> Finding:
    """A finding of a loss spike, but for the details given."""
    about = {"rule": "SK201", "name": "loss-spike", "severity": Severity.WARNING, "message": "loss rose to 9"}
    return Finding(**{**about, "first_step": 7, "last_step": 9, **details})


def outcome(rule: str, name: str, status: Status = Status.CLEAR, reason: str = "", *findings: Finding) -> Outcome:
    """What became of a rule."""
    return Outcome(rule=rule, name=name, status=status, reason=reason, findings=findings)


def diagnosis(*outcomes: Outcome, steps: int = 400, notes: tuple[str, ...] = (), path: str = "runs/a") -> Diagnosis:
    """A diagnosis of a run."""
    return Diagnosis(path=path, source="stabkit", steps=steps, outcomes=outcomes, notes=notes)


@pytest.fixture
def make() -> Any:
    """`make.finding`, `make.outcome` and `make.diagnosis`."""
    import types

    return types.SimpleNamespace(finding=finding, outcome=outcome, diagnosis=diagnosis)
