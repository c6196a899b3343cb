"""Whether the printed remedy heals: a sick run trained again with what its first finding advises, at the same budget.

Tried is the remedy that a user meets first: that of the earliest cause of warning or error which has one in numbers. It heals
where the run trained again has no event and ends within three deviations of the seeds of its healthy twin.
"""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.score.bootstrap import Estimate, wilson
from benchmarks.score.tally import Seen

__all__ = ["Trial", "chosen", "told", "train_again"]


WITHOUT = "no remedy in numbers"


@dataclass(frozen=True)
class Trial:
    """A sick run and what is to be changed in it.

    Attributes:
        id: The run's.
        cls: Class of its first event.
        rule: The rule that advises; "" where no finding has a remedy in numbers.
        remedy: By name of `stabkit.finding.REMEDIES`; empty where there is none.
        facts: Steps and tensors of the finding, which a remedy may refer to.
    """

    id: str
    cls: str
    rule: str
    remedy: Mapping[str, float]
    facts: Mapping[str, object]


def chosen(seen: Sequence[Seen], most: int | None = None) -> tuple[Trial, ...]:
    """The sick runs that some remedy in numbers can heal, in turn from every class, and the remedy of each.

    Args:
        seen: The runs.
        most: How many at most; all by default. Runs without a remedy count: they are part of the figure.
    """
    classes: dict[str, list[Trial]] = defaultdict(list)
    for one in seen:
        if one.case.remedies_apply and one.case.events:
            trial = _trial(one)
            classes[trial.cls].append(trial)
    ranked = [(place, cls, trial) for cls, trials in classes.items() for place, trial in enumerate(_shuffled(trials))]
    return tuple(trial for _, _, trial in sorted(ranked, key=lambda each: each[:2])[:most])


def _trial(one: Seen) -> Trial:
    advice = next((alarm for alarm in one.alarms if alarm.depth == 0 and alarm.remedy), None)
    name, cls = one.case.id, one.case.events[0].cls
    return Trial(name, cls, advice.rule, dict(advice.remedy), dict(advice.facts)) if advice else Trial(name, cls, "", {}, {})


def _shuffled(trials: Sequence[Trial]) -> list[Trial]:
    """Always in the same way: neighbours in the order of ids are of one family and one fault."""
    return [trials[i] for i in np.random.default_rng(0).permutation(len(trials))]


def train_again(trials: Sequence[Trial], runs: Path, jobs: int) -> list[Mapping[str, Any] | str]:
    """The label of each trained again, or why there is none. Cached by the corpus.

    Raises:
        ImportError: something that the corpus needs is not installed.
    """
    context = multiprocessing.get_context("spawn")  # torch must not be forked
    with ProcessPoolExecutor(jobs, context) as pool:
        return list(pool.map(partial(_again, runs=runs), trials))


def _again(trial: Trial, runs: Path) -> Mapping[str, Any] | str:
    if not trial.remedy:
        return WITHOUT
    from benchmarks.corpus.rerun import rerun  # trains, and so needs torch

    try:
        return rerun(trial.id, trial.remedy, trial.facts, runs)
    except ImportError:  # what the corpus needs is not installed
        raise
    except Exception as error:  # one run that cannot be made must not lose the others
        return f"not tried: {type(error).__name__}: {error}"


def told(trials: Sequence[Trial], labels: Sequence[Mapping[str, Any] | str], sick: int) -> dict[str, Any]:
    """The figures.

    Args:
        trials: From `chosen`.
        labels: Of each, from `train_again`.
        sick: How many sick runs there are in all.
    """
    healed = [_healed(label) for label in labels]
    runs = [
        {"id": trial.id, "class": trial.cls, "rule": trial.rule, "remedy": _words(trial.remedy), "outcome": _outcome(label),
         "healed": well} for trial, label, well in zip(trials, labels, healed, strict=True)
    ]  # fmt: skip
    known = list(zip(trials, healed, strict=True))
    classes, rules = sorted({trial.cls for trial in trials}), sorted({trial.rule for trial in trials if trial.rule})
    return {
        **_shares(healed), "sick": sick, "runs": runs, "without": sum(not trial.remedy for trial in trials),
        "classes": {cls: _shares([well for trial, well in known if trial.cls == cls]) for cls in classes},
        "rules": {rule: _shares([well for trial, well in known if trial.rule == rule]) for rule in rules},
    }  # fmt: skip


def _healed(label: Mapping[str, Any] | str) -> bool | None:
    return None if isinstance(label, str) else not label["events"] and not label["failed"]


def _shares(healed: Sequence[bool | None]) -> dict[str, Any]:
    """Healed of those tried, and of all; every run is one observation."""
    tried = [well for well in healed if well is not None]
    return {"healed": _share(sum(tried), len(tried)), "healed_of_all": _share(sum(tried), len(healed))}


def _share(right: int, count: int) -> dict[str, float | None]:
    low, high = wilson(right, count)
    return Estimate(right / count if count else float("nan"), low, high, count).data()


def _outcome(label: Mapping[str, Any] | str) -> str:
    if isinstance(label, str):
        return label
    if label["events"]:
        first = label["events"][0]
        return f"{first['kind']} at step {first['onset']}"
    final, twin = (float("nan") if label[name] is None else label[name] for name in ("final_loss", "twin_loss"))
    return f"{'worse than its twin' if label['failed'] else 'healed'}: loss {final:.3g}, twin {twin:.3g}"


def _words(remedy: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:.3g}" for name, value in remedy.items())
