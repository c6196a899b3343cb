"""How often each rule was right on runs whose outcome is known: what `python -m benchmarks.score --write-confidence` found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from stabkit.finding import Finding, Severity

__all__ = ["FILE", "confidences", "with_confidence"]

FILE = Path(__file__).with_name("measured.json")


@cache
def confidences(file: Path = FILE) -> Mapping[str, tuple[float, float, float]]:
    """(precision, low, high) by rule. Empty where nothing was measured or the file cannot be read: no verdict depends on it."""
    try:
        known: Mapping[str, Mapping[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rules"]
        return {rule: (float(m["precision"]), float(m["low"]), float(m["high"])) for rule, m in known.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def with_confidence(finding: Finding, file: Path = FILE) -> Finding:
    """The finding with its rule's measured confidence. Information was not measured, and one that is set already stays."""
    if finding.confidence is not None or finding.severity == Severity.INFO:
        return finding
    trust = confidences(file).get(finding.rule)
    return replace(finding, confidence=trust) if trust else finding
