"""A real `fit` of Lightning inside one line: the log agrees with what Lightning's own logger was given.

Lightning's automatic optimization hands the whole of forward, zero_grad and backward to the optimizer's step as a closure. It
logs losses as float32, and of accumulated micro-batches only the last, so those before it are kept by the module; the norm is
Lightning's own `grad_norm`, a float32 too. Hence the tolerance of 1e-6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from framework_runs import SLOW, assert_agrees, same_weights, watched
from torch.nn import functional as F

import stabkit

lightning = pytest.importorskip("lightning", reason="needs the extra `frameworks` (make test-slow installs it)")

pytestmark = SLOW
STEPS = 24


def classifier(automatic: bool, accumulate: int) -> Any:
    class Classifier(lightning.LightningModule):
        """Keeps what it was told of each step."""

        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
            self.automatic_optimization = automatic
            self.losses: list[float] = []
            self.rates: list[float] = []
            self.norms: list[float] = []

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            self.losses.append(loss.item())
            if not automatic:
                self.by_hand(loss / accumulate, index)
            return loss

        def by_hand(self, loss: torch.Tensor, index: int) -> None:
            optimizer, scheduler = self.optimizers(), self.lr_schedulers()
            self.manual_backward(loss)
            if (index + 1) % accumulate == 0:
                self.note(optimizer)
                self.clip_gradients(optimizer, gradient_clip_val=0.3, gradient_clip_algorithm="norm")
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if automatic:  # else it comes after clipping
                self.note(optimizer)

        def note(self, optimizer: Any) -> None:
            self.rates.append(optimizer.param_groups[0]["lr"])
            self.norms.append(float(lightning.pytorch.utilities.grad_norm(self.net, norm_type=2)["grad_2.0_norm_total"]))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
            warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 5)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
            both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [5])
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": both, "interval": "step"}}

    return Classifier()


def keeper() -> Any:
    from lightning.pytorch.loggers.logger import Logger

    class Keeper(Logger):
        """Keeps what Lightning logs."""

        name, version = "keeper", 0

        def __init__(self) -> None:
            super().__init__()
            self.losses: list[float] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.losses += [metrics["loss"]] if "loss" in metrics else []

        def log_hyperparams(self, *_: Any, **__: Any) -> None:
            pass

    return Keeper()


def fit(where: Path, watch: bool, automatic: bool = True, accumulate: int = 1, **options: Any) -> tuple[Any, Any]:
    lightning.seed_everything(0, verbose=False)
    model, logger = classifier(automatic, accumulate), keeper()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96 * accumulate, 6, generator=generator)
    data = torch.utils.data.TensorDataset(x, (x[:, :3] + 0.1).argmax(1))
    defaults = {
        "max_steps": STEPS, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "logger": logger,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": str(where),
    }  # fmt: skip
    if automatic:
        defaults |= {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.3}
    trainer = lightning.Trainer(**{**defaults, **options})
    with watched(watch, model, where / "run"):
        trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=8))
    return model, logger


OPTIONS: dict[str, dict[str, Any]] = {
    "automatic": {},
    "automatic, accumulating three": {"accumulate": 3},
    "automatic, clipped by value": {"gradient_clip_algorithm": "value", "gradient_clip_val": 0.05},
    "automatic, not clipped": {"gradient_clip_val": None},
    "automatic, bfloat16": {"precision": "bf16-mixed"},
    "by hand": {"automatic": False},
    "by hand, accumulating two": {"automatic": False, "accumulate": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_fit_agrees_with_lightnings_own_log(tmp_path: Path, options: dict[str, Any]) -> None:
    model, logger = fit(tmp_path, True, **options)
    bare, _ = fit(tmp_path / "bare", False, **options)
    assert same_weights(model, bare)
    accumulate = options.get("accumulate", 1)
    micro = np.array(model.losses).reshape(STEPS, accumulate)
    if accumulate == 1 or not options.get("automatic", True):
        assert logger.losses == model.losses, "what Lightning logged is what the module kept"
    else:
        assert logger.losses == micro[:, -1].tolist()
    assert_agrees(
        stabkit.load(tmp_path / "run"), loss=micro.mean(axis=1), lr=model.rates, grad_norm=model.norms, tolerance=1e-6
    )


def test_an_exception_in_a_callback_leaves_a_whole_log(tmp_path: Path) -> None:
    class Stopping(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 10:
                raise ValueError("the user's")

    with pytest.raises(ValueError, match="the user's"):
        fit(tmp_path, True, callbacks=[Stopping()])
    run = stabkit.load(tmp_path / "run")
    assert run.steps.tolist() == list(range(1, 11))
    assert run.notes == ()
