"""Tests of the fault corpus (benchmarks/corpus)."""
