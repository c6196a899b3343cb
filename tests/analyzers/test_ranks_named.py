"""The rank whose data went bad is named; a rank that is merely different, or not alone, is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from analyzer_runs import flat, make_run

from stabkit.analyzers import analyze
from stabkit.finding import Finding
from stabkit.runlog import RunLog

N, BAD = 120, 80


def run_of(*losses: Any) -> RunLog:
    """A data-parallel run of ranks with these losses."""
    runs = [make_run(own) for own in losses]
    with np.errstate(invalid="ignore"):
        whole = make_run(np.mean(losses, axis=0))
    return replace(whole, ranks={rank: run.streams for rank, run in enumerate(runs)})


def noisy(rank: int, level: float = 3.0) -> Any:
    return level * np.exp(0.03 * np.random.default_rng(rank).standard_normal(N))


def the_one(run: RunLog, rule: str) -> Finding:
    (finding,) = (f for f in flat(analyze(run)) if f.rule == rule)
    return finding


def test_a_spike_on_one_rank_names_it() -> None:
    losses = [noisy(rank) for rank in range(4)]
    losses[2][BAD] *= 20
    finding = the_one(run_of(*losses), "SK201")
    assert "it began on rank 2 alone" in finding.message and f"step {BAD + 1} on rank 2" in finding.advice
    (own,) = (e for e in finding.evidence if e.metric == "loss of rank 2")
    assert own.observed == losses[2][BAD] and abs(own.expected - 3.0) < 0.1


def test_a_spike_on_all_ranks_names_none() -> None:
    losses = [noisy(rank) for rank in range(4)]
    for own in losses:
        own[BAD] *= 3
    finding = the_one(run_of(*losses), "SK201")
    assert "rank" not in finding.message + finding.advice


def test_a_rank_with_harder_data_is_not_blamed_for_a_spike_of_all() -> None:
    losses = [noisy(0, 1.0), noisy(1, 9.0)]
    for own in losses:
        own[BAD] *= 3
    assert "rank" not in the_one(run_of(*losses), "SK201").message
    losses = [noisy(0, 1.0), noisy(1, 9.0)]
    losses[0][BAD] *= 30
    assert "on rank 0 alone" in the_one(run_of(*losses), "SK201").message, "though the other's loss is mostly higher"


def test_a_nan_on_one_rank_names_it() -> None:
    losses = [noisy(rank) for rank in range(3)]
    losses[1][BAD:] = np.nan
    losses[0][BAD + 1 :] = losses[2][BAD + 1 :] = np.nan
    finding = the_one(run_of(*losses), "SK301")
    assert f"of rank 1 alone at step {BAD + 1}" in finding.message and f"step {BAD + 1} on rank 1" in finding.advice
    assert any(e.metric == "loss of rank 1" for e in finding.evidence)


def test_a_nan_on_all_ranks_names_none() -> None:
    losses = [noisy(rank) for rank in range(3)]
    for own in losses:
        own[BAD:] = np.nan
    assert "rank" not in the_one(run_of(*losses), "SK301").message


def test_a_healthy_run_of_several_ranks_has_no_finding() -> None:
    found = flat(analyze(run_of(*(noisy(rank, 1.0 + rank) for rank in range(4)))))
    assert not [f for f in found if f.rule in ("SK201", "SK301")]
