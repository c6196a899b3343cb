"""Mistakes in parameters, decay and the optimizer's state (SK416 to SK421, SK105, SK306)."""

from __future__ import annotations

from tests.cases.wiring import WiringCase

__all__ = ["CASES"]

CASES: dict[str, WiringCase] = {}
