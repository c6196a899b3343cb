"""SK901 always-ill.

What it reports:    Every run, so that there is something to print. Two sentences,
                    on two lines.
Why it matters:     It does not.
How it decides:     By this formula:

                        x > 1  and  y < 2

                    - a first point, which goes on
                      in a second line;
                    - a second point.
                    And a last sentence.
Known false alarms: All of them.
What to try:        Note: a colon in a text opens no section.
References:         None.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stabkit.analyzers import NotApplicable, Rule
from stabkit.finding import Evidence, Finding, Severity
from stabkit.metric import TENSOR_COLUMNS
from stabkit.runlog import Group, Layout, RunLog, RunWriter, StepRecord, TensorInfo


class Fake:
    """A rule that answers what it was told to: a finding of a severity, "clear", "broken", or why it could not look."""

    def __init__(self, code: str, name: str, answer: Severity | str) -> None:
        severity = answer if isinstance(answer, Severity) else Severity.WARNING
        self.rule = Rule(code=code, name=name, severity=severity, requires=(("loss", "step"), ("weight_norm", "tensor")))
        self.answer = answer

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        if self.answer == "broken":
            raise KeyError("eps")
        if isinstance(self.answer, str) and self.answer != "clear":
            raise NotApplicable(self.answer)
        if isinstance(self.answer, Severity):
            seen = Evidence(metric="loss", observed=float("nan"), expected=2.5, step=2)
            about = {"first_step": 2, "last_step": 3, "last_good_step": 1, "tensors": ("w",), "evidence": (seen,)}
            rule = self.rule
            yield Finding(rule=rule.code, name=rule.name, severity=rule.severity, message="too much at step 2", **about)  # type: ignore[arg-type]


FAKES = (
    Fake("SK901", "always-ill", Severity.WARNING),
    Fake("SK902", "always-well", "clear"),
    Fake("SK903", "always-blind", "there is no light"),
    Fake("SK951", "slightly-ill", Severity.INFO),
)


def write_run(path: Path, steps: int = 3, attempts: int = 1) -> Path:
    """A log as `stabkit.watch` would write it, of one tensor called "w"."""
    layout = Layout((TensorInfo("w", (2, 3)),), 1, "AdamW", "foreach")
    for _ in range(attempts):
        writer = RunWriter(path, {"stabkit": "0.1.0", "torch": "2.9", "python": "3.12", "precision": "float32"})
        number = writer.layout(0, layout)
        attempt, _ = writer.begin_attempt(0, 0)
        for step in range(1, steps + 1):
            values = np.ones((1, len(TENSOR_COLUMNS)))
            record = StepRecord(step, attempt, number, time=1e9 + step, loss=2.0, groups=(Group(0.1, 0.0, 0.9, 0.99, 1e-8),))
            record.tensors = values
            writer.write(0, record)
        writer.scalars(steps, {"val_loss": 1.5})
        writer.event("mark", step=steps, note="the end")
        writer.close()
    return path


def main() -> None:
    """The command line with the fake rules in place of the real ones: for tests in a process of its own."""
    import stabkit.analyzers
    from stabkit.cli import main as command_line

    stabkit.analyzers.ANALYZERS = FAKES
    command_line()


if __name__ == "__main__":
    sys.exit(main())
