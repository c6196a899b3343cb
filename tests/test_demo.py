"""The demo does what it says: the healthy run is cleared, the broken one is caught early, and the printed remedy heals it."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import stabkit
from stabkit.cli import commands
from stabkit.demo import GPT, HEALTHY, NO_WARMUP, Recipe, standard_library_text, train
from stabkit.finding import Severity

SEEDS = (0, 1, 2)


def test_the_model_is_the_size_it_is_said_to_be() -> None:
    assert 2.8e6 < sum(p.numel() for p in GPT().parameters()) < 3.5e6


def test_the_text_is_the_standard_library() -> None:
    text = bytes(standard_library_text(2_000_000).tolist())
    assert len(text) == 2_000_000
    assert b"import" in text


def test_the_rate_rises_then_falls_to_a_tenth() -> None:
    recipe = Recipe(lr=1.0, warmup=20, steps=200)
    assert [recipe.rate(step) for step in (1, 10, 20)] == [0.05, 0.5, 1.0]
    assert recipe.rate(200) == pytest.approx(0.1)
    assert NO_WARMUP.rate(1) > 0.999 * NO_WARMUP.lr


@pytest.mark.slow
def test_the_command_trains_both_and_judges_both(tmp_path: Path) -> None:
    result = CliRunner().invoke(commands, ["demo", "--steps", "30", "--directory", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert stabkit.analyze(stabkit.load(tmp_path / "healthy")).exit_code == 0
    assert "SK101" in result.output and "linear warmup of" in result.output


@pytest.mark.slow
def test_the_verdicts_and_the_remedy_hold_over_seeds(tmp_path: Path) -> None:
    """Healthy: clear. Broken: dated within ten steps. Healed as advised, at the same budget: clear, and as good as healthy."""
    healthy, broken, healed = {}, {}, {}
    for seed in SEEDS:
        runs = {"healthy": replace(HEALTHY, seed=seed), "broken": replace(NO_WARMUP, seed=seed)}
        healthy[seed] = train(runs["healthy"], tmp_path / f"healthy{seed}")
        assert stabkit.analyze(stabkit.load(tmp_path / f"healthy{seed}")).exit_code == 0

        broken[seed] = train(runs["broken"], tmp_path / f"broken{seed}")
        diagnosis = stabkit.analyze(stabkit.load(tmp_path / f"broken{seed}"))
        assert diagnosis.exit_code == 1
        first = next(f for f in diagnosis.findings if f.rule in ("SK101", "SK102"))
        assert first.severity >= Severity.WARNING
        assert first.first_step <= 10

        remedy = re.search(r"linear warmup of (\d+) steps and a peak rate of ([\d.e-]+?)\.? ", first.advice)
        assert remedy, first.advice
        recipe = replace(runs["broken"], warmup=int(remedy[1]), lr=float(remedy[2]))
        healed[seed] = train(recipe, tmp_path / f"healed{seed}")
        assert stabkit.analyze(stabkit.load(tmp_path / f"healed{seed}")).exit_code == 0

    deviation = statistics.stdev(healthy.values())
    print(f"healthy {healthy}\nbroken {broken}\nhealed {healed}\nseed deviation {deviation:.4f}")
    for seed in SEEDS:
        assert broken[seed] > healthy[seed] + 3 * deviation, "the fault must do harm, else there was nothing to heal"
        assert healed[seed] <= healthy[seed] + 3 * deviation
