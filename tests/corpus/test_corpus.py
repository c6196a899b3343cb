"""The list of runs, one tiny run really trained, what a kill leaves behind, and a rerun with a remedy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import stabkit
from benchmarks.corpus.faults import CLASSES, FAULTS
from benchmarks.corpus.producer import sole_producer
from benchmarks.corpus.recipe import Recipe
from benchmarks.corpus.recipes import BASES, PLANS, RECIPES, references
from benchmarks.corpus.rerun import remedied
from benchmarks.corpus.store import label_of, make, relabel
from stabkit.finding import REMEDIES

PART = {part: [r for r in RECIPES.values() if r.part == part] for part in ("tune", "score")}


def tiny(name: str = "mini-s0", **changes: object) -> Recipe:
    return replace(RECIPES[name], **{"steps": 40, **changes})  # type: ignore[arg-type]


def test_every_run_has_an_id_of_its_own() -> None:
    planned = sum(len(references(base, part)) for part in PART for base in BASES)
    runs = [(plan, part, size) for plan in PLANS for part in PART for size in getattr(plan, part)]
    planned += sum(min(plan.seeds, len(references(plan.base, part))) for plan, part, _ in runs)
    assert planned == len([r for r in RECIPES.values() if not r.id.endswith("-calm")])


def test_the_parts_share_neither_seed_nor_rate_and_one_family_is_for_scoring_only() -> None:
    tune, score = PART["tune"], PART["score"]
    assert not {r.seed for r in tune} & {r.seed for r in score}
    assert not {(r.family, r.lr) for r in tune} & {(r.family, r.lr) for r in score}
    assert {r.family for r in score} - {r.family for r in tune} == {"recurrent"}


def test_every_run_has_a_twin_of_its_part_and_every_setting_three_seeds() -> None:
    for recipe in RECIPES.values():
        assert (recipe.twin is None) == (recipe.fault is None)
        assert not recipe.id.endswith("-calm") or recipe.id.removesuffix("-calm") in RECIPES
        if recipe.twin:
            assert RECIPES[recipe.twin].part == recipe.part
            assert RECIPES[recipe.twin].seed == recipe.seed
            assert len(references(recipe.base, recipe.part)) >= 3


def test_every_fault_is_used_and_has_a_class_that_rules_name() -> None:
    assert {r.fault for r in RECIPES.values() if r.fault} == set(FAULTS)
    assert {fault.label for fault in FAULTS.values() if fault.label} == set(CLASSES)


def test_a_reference_and_a_sick_run_are_trained_and_labelled(tmp_path: Path) -> None:
    healthy = make(tiny(), tmp_path)
    assert healthy["healthy"] and not healthy["hard_negative"]
    broken = replace(_first("mini-zero-division-1-s0"), first=25, last=25)
    make(tiny("mini-s1"), tmp_path)
    sick = make(tiny("mini-zero-division-1-s0", disturbances=(broken,)), tmp_path)
    assert [(e["onset"], e["kind"], e["class"]) for e in sick["events"]] == [(25, "nonfinite", "nonfinite")]
    assert "SK301" in sick["events"][0]["rules"]
    assert len(stabkit.load(tmp_path / "mini-zero-division-1-s0" / "run").steps) == 40


def test_a_run_is_labelled_again_from_what_it_left(tmp_path: Path) -> None:
    first = make(tiny(), tmp_path)
    path = tmp_path / "mini-s0" / "label.json"
    path.write_text(json.dumps({**first, "events": "of an older labeller"}))
    assert relabel(tiny(), tmp_path) == first == label_of("mini-s0", tmp_path)
    with pytest.raises(RuntimeError, match="not trained yet as its recipe says"):
        relabel(tiny(lr=1e-3), tmp_path)


def test_one_producer_at_a_time_makes_runs(tmp_path: Path) -> None:
    with (
        sole_producer(tmp_path),
        pytest.raises(RuntimeError, match=f"process {os.getpid()} makes runs"),
        sole_producer(tmp_path),
    ):
        pass
    with sole_producer(tmp_path):
        pass


def test_the_moments_that_a_resume_drops_are_labelled_from_the_step_where_the_recorded_attempt_begins(tmp_path: Path) -> None:
    dropped = tiny("mini-moments-12-s0", resume=20)
    make(replace(RECIPES["mini-s0"], steps=40), tmp_path)
    make(tiny("mini-moments-12-s0-calm", resume=20), tmp_path)
    label = make(dropped, tmp_path)
    recorded = stabkit.load(tmp_path / dropped.id / "run").series("loss")
    assert label["first_step"] == recorded.steps[0] == 21
    assert all(event["end"] >= 21 for event in label["events"])


def test_what_is_done_is_not_trained_again_and_what_changed_is(tmp_path: Path) -> None:
    first = make(tiny(), tmp_path)
    assert make(tiny(), tmp_path) == first
    assert make(tiny(lr=1e-3), tmp_path)["recipe_hash"] != first["recipe_hash"]


def test_the_same_recipe_trains_the_same_bits(tmp_path: Path) -> None:
    one, other = make(tiny(), tmp_path / "a"), make(tiny(), tmp_path / "b")
    assert one["final_loss"] == other["final_loss"]


def test_a_run_killed_in_the_middle_has_no_label_and_is_trained_again(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace; from benchmarks.corpus.store import make;"
        "from benchmarks.corpus.recipes import RECIPES; make(replace(RECIPES['mini-s0'], steps=100_000), Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    run = tmp_path / "mini-s0" / "run"
    deadline = time.monotonic() + 120
    while not list(run.glob("**/*.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert run.exists()
    assert label_of("mini-s0", tmp_path) is None
    assert make(tiny(), tmp_path)["healthy"]


def test_a_remedy_changes_what_it_names() -> None:
    sick = RECIPES["mini-bf16-1-s0"]
    assert remedied(sick, {"master_weights": 1}, {}).precision == "float32"
    grown = remedied(RECIPES["text-grow-40-s0"], {"weight_decay": 0.1}, {"tensors": ("blocks.1.fc2.weight",)})
    assert grown.decay == {"blocks.1.fc2.weight": 0.1}
    slower = remedied(RECIPES["mini-jump-50-s0"], {"lr_factor": 0.02}, {"last_good_step": 299})
    assert slower.rate(300) == pytest.approx(RECIPES["mini-s0"].rate(300))
    bad = _first("mini-noise-30-s0")
    skipped = remedied(RECIPES["mini-noise-30-s0"], {"skip_batches": 1}, {"first_step": bad.first, "last_step": bad.last})
    assert skipped.now("noise", bad.first) is None
    capped = remedied(RECIPES["text-nowarmup-30-s0"], {"peak_lr": 1e-3, "warmup_steps": 20}, {})
    assert capped.rate(1) < capped.rate(20) == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="no such remedy"):
        remedied(sick, {"prayer": 1}, {})


@pytest.mark.parametrize("name", sorted(REMEDIES))
def test_every_remedy_changes_some_recipe(name: str) -> None:
    names = ("mini-bf16-1-s0", "mini-unscale-65536-s0", "mini-moments-5-s0", "mini-nowarmup-50-s0")
    facts = {"first_step": 1, "last_step": 2, "last_good_step": 1}
    assert any(remedied(RECIPES[n], {name: 1.0 if name != "peak_lr" else 1e-4}, facts) != RECIPES[n] for n in names)


def _first(name: str):  # type: ignore[no-untyped-def]
    return RECIPES[name].disturbances[0]
