"""How often each rule was right on runs whose outcome is known: what `python -m benchmarks.score --write-confidence` found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from stabkit.finding import Finding, Severity

__all__ = ["FILE", "confidences", "sentence", "with_confidence"]

FILE = Path(__file__).with_name("measured.json")


@cache
def _contents(file: Path) -> Mapping[str, Any]:
    """What the file holds; empty where it cannot be read: no verdict depends on it."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


@cache
def confidences(file: Path = FILE) -> Mapping[str, tuple[float, float, float]]:
    """(precision, low, high) by rule; empty where nothing was measured."""
    try:
        known: Mapping[str, Mapping[str, Any]] = _contents(file)["rules"]
        return {rule: (float(m["precision"]), float(m["low"]), float(m["high"])) for rule, m in known.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def with_confidence(finding: Finding, file: Path = FILE) -> Finding:
    """The finding with its rule's measured confidence. Information was not measured, and one that is set already stays."""
    if finding.confidence is not None or finding.severity == Severity.INFO:
        return finding
    trust = confidences(file).get(finding.rule)
    return replace(finding, confidence=trust) if trust else finding


def sentence(rule: str, file: Path = FILE) -> str:
    """What was measured of a rule, for its page."""
    if rule not in confidences(file):
        return "Not measured yet."
    share, low, high = (f"{100 * value:.0f}" for value in confidences(file)[rule])
    known = _contents(file)
    counts = known["rules"][rule]
    optimistic = " Thresholds were set on the same runs: this is optimistic." if known.get("part") == "tune" else ""
    return (
        f"Right in {share} % (95 % interval: {low} to {high} %) of {counts.get('findings', '?')} findings in "
        f"{counts.get('runs', '?')} runs of known outcome: trouble that it may name followed within 200 steps, began or went "
        f"on.{optimistic}"
    )
