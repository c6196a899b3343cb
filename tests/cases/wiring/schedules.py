"""Mistakes in learning-rate schedules (SK409 to SK415)."""

from __future__ import annotations

from tests.cases.wiring import WiringCase

__all__ = ["CASES"]

CASES: dict[str, WiringCase] = {}
