"""Mistakes in clipping, loss scaling and accumulation (SK401 to SK408)."""

from __future__ import annotations

from tests.cases.wiring import WiringCase

__all__ = ["CASES"]

CASES: dict[str, WiringCase] = {}
