"""A real run of Transformers' Trainer inside one line: the log agrees with the Trainer's own.

The optimizer does not exist before `train()` makes it, so it is adopted. The Trainer logs the loss averaged over
`logging_steps`, here 1, as a float32; hence the tolerance of 1e-6.
"""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from framework_runs import SLOW, assert_agrees, same_weights, watched

import stabkit

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched: the model is made from its configuration
pytestmark = SLOW


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """Looked for only when a test runs: importing it takes seconds that `make test` need not spend.

    Transformers loads its parts when they are first asked for, and puts another module in its own place while it does.
    Once, never reproduced, the first run of a process had another first loss than the second: so all parts are there before
    a run, and all runs start from the same bits.
    """
    transformers = pytest.importorskip("transformers", reason="needs the extra `frameworks` (make test-slow installs it)")
    assert transformers.GPT2LMHeadModel and transformers.Trainer


@functools.cache
def made() -> Any:
    """A small GPT-2, the same bits for every run of this process."""
    import transformers

    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    return transformers.GPT2LMHeadModel(config)


def train(where: Path, watch: bool, steps: int = 20, resume: bool = False, **options: Any) -> tuple[Any, Any]:
    import transformers

    model = copy.deepcopy(made())
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 32, (1,), generator=generator) + torch.arange(12) for _ in range(96)]
    data = [{"input_ids": row % 32, "labels": row % 32} for row in rows]
    defaults = {
        "max_steps": steps, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5,
        "learning_rate": 3e-3, "lr_scheduler_type": "cosine", "warmup_steps": 5, "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_nan_inf_filter": False,
    }  # fmt: skip
    arguments = transformers.TrainingArguments(str(where / "trainer"), **{**defaults, **options})
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    transformers.set_seed(1)
    with watched(watch, model, where / "run"):
        trainer.train(resume_from_checkpoint=resume or None)
    return model, [entry for entry in trainer.state.log_history if "loss" in entry]


OPTIONS: dict[str, dict[str, Any]] = {
    "two micro-batches, clipping, warmup and cosine": {},
    "one micro-batch": {"gradient_accumulation_steps": 1},
    "fused": {"optim": "adamw_torch_fused"},
    "never clipped": {"max_grad_norm": 1e9},
    "bfloat16": {"bf16": True},
    "activation checkpoints": {"gradient_checkpointing": True},
    "micro-batches left over at the end of the epoch": {"gradient_accumulation_steps": 5},
    "inverse square root": {"lr_scheduler_type": "inverse_sqrt"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_trainer_agrees_with_its_own_log(tmp_path: Path, options: dict[str, Any]) -> None:
    model, history = train(tmp_path, True, **options)
    bare, its_history = train(tmp_path / "bare", False, **options)
    assert [entry["loss"] for entry in history] == [entry["loss"] for entry in its_history]
    assert same_weights(model, bare)
    assert_agrees(
        stabkit.load(tmp_path / "run"),
        loss=[entry["loss"] for entry in history],
        lr=[entry["learning_rate"] for entry in history],
        grad_norm=[entry["grad_norm"] for entry in history],
        tolerance=1e-6,
    )


def test_trainer_resumed_from_its_checkpoint_goes_on_in_the_same_log(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 10}
    _, first = train(tmp_path, True, 20, **options)
    _, second = train(tmp_path, True, 30, resume=True, **options)
    run = stabkit.load(tmp_path / "run")
    assert run.attempts == 1
    assert run.steps.tolist() == list(range(1, 31))
    assert run.series("loss").values[20:] == pytest.approx(np.array([entry["loss"] for entry in second[-10:]]), rel=1e-6)
    assert run.series("loss").values[:20] == pytest.approx(np.array([entry["loss"] for entry in first]), rel=1e-6)
