"""The fault corpus: small models really trained, sick and healthy, with labels from what became of them. See README.md."""

from __future__ import annotations

from benchmarks.corpus.recipes import RECIPES
from benchmarks.corpus.rerun import rerun
from benchmarks.corpus.store import RUNS, label_of

__all__ = ["RECIPES", "RUNS", "label_of", "rerun"]
