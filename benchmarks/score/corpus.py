"""The labelled runs: what the corpus wrote of each, without a look at any part that was not asked for."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RUNS", "SCHEMA", "Case", "Event", "read_cases"]

RUNS = Path(__file__).parents[1] / "corpus" / "runs"
SCHEMA = 1
TOLD = 5
"""Steps after an onset, or a rise, within which it is told."""
SIGHT = 200


@dataclass(frozen=True)
class Event:
    """One trouble, as its outcome shows it.

    Attributes:
        onset: The step at which it begins.
        end: The last step it lasts.
        kind: Such as "spike" or "nonfinite".
        cls: Class of the mechanism, such as "stale".
        rules: Codes that name it rightly.
        tensors: Tensors at fault; empty where no tensor is.
    """

    onset: int
    end: int
    kind: str = "spike"
    cls: str = ""
    rules: frozenset[str] = frozenset()
    tensors: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run and what is known of it.

    Attributes:
        id: Its name.
        path: The folder that holds `run/` and `label.json`.
        part: "tune" or "score".
        family: The kind of model.
        fault: What was done to it, None for nothing.
        healthy: Nothing went wrong, whatever was done. A run that failed though no loss of its training shows it is neither
            healthy nor has it events.
        hard_negative: Healthy, though it looks suspicious.
        events: What went wrong, by onset.
        seed: Of the run.
        twin: The healthy run it is held against.
        final_loss: The loss at the end.
        remedies_apply: Whether the recipe can be trained again with a remedy.
        excused_steps: First and last step of stretches where the data alone made the loss rise: to say so is no error.
        excused_rules: Rules that state what is so, though no harm came of it.
    """

    id: str
    path: Path
    part: str = "tune"
    family: str = ""
    fault: str | None = None
    healthy: bool = False
    hard_negative: bool = False
    events: tuple[Event, ...] = ()
    seed: int = 0
    twin: str | None = None
    final_loss: float = float("nan")
    remedies_apply: bool = False
    excused_steps: tuple[tuple[int, int], ...] = ()
    excused_rules: frozenset[str] = frozenset()

    def of_the_data(self, step: int) -> bool:
        """Whether an alarm that says no more than that something rose is neither right nor false: no event is on."""
        own = any(event.onset <= step <= max(event.end, event.onset + TOLD) for event in self.events)
        return not own and any(first <= step <= last + TOLD for first, last in self.excused_steps)

    def stated(self, rule: str, step: int) -> bool:
        """Whether an alarm states what is so, and no harm that it could have meant was near."""
        near = any(event.onset - SIGHT <= step <= max(event.end, event.onset + TOLD) for event in self.events)
        return rule in self.excused_rules and not near


def read_cases(runs: Path, parts: Collection[str]) -> tuple[Case, ...]:
    """The labelled runs of some parts, by id. Of a run of another part nothing but its part is looked at.

    A folder made by a remedy (`<id>+<hash>`) is no run of the corpus, nor is one without a label: it is not finished.

    Raises:
        ValueError: a label is of another schema, or contradicts itself.
    """
    found = []
    for file in sorted(runs.glob("*/label.json")):
        label = json.loads(file.read_text(encoding="utf-8"))
        if label["part"] in parts and "+" not in file.parent.name:
            found.append(_case(file.parent, label))
    return tuple(found)


def _case(path: Path, label: Mapping[str, Any]) -> Case:
    if label["schema"] != SCHEMA:
        raise ValueError(f"{path}: its label is of schema {label['schema']}; this scorer knows {SCHEMA}")
    if label["healthy"] and label["events"]:
        raise ValueError(f"{path}: a healthy run has no events")
    known = ("id", "part", "family", "fault", "healthy", "hard_negative", "seed", "twin", "remedies_apply")
    events = sorted((event_of(event) for event in label["events"]), key=lambda event: event.onset)
    final = label["final_loss"]
    return Case(
        path=path, events=tuple(events), final_loss=float("nan") if final is None else float(final),
        excused_steps=tuple((first, last) for first, last in label.get("excused_steps", ())),
        excused_rules=frozenset(label.get("excused_rules", ())),
        **{name: label[name] for name in known},
    )  # fmt: skip


def event_of(label: Mapping[str, Any]) -> Event:
    """An event of a label."""
    rules, tensors = frozenset(label["rules"]), frozenset(label["tensors"])
    return Event(label["onset"], label["end"], label["kind"], label["class"], rules, tensors)
