"""Torch's own database of optimizers, which its tests are made from: every optimizer, every configuration, on the CPU."""

from __future__ import annotations

import contextlib
import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stabkit
from stabkit.watch import StabkitWarning
from tests.optimizers.training import bits, norm, wide

pytest.importorskip("expecttest", reason="torch.testing needs expecttest: pip install -e '.[dev]'")
from torch.testing._internal.common_optimizers import OptimizerInfo, optim_db

STEPS = 4


def configurations(info: OptimizerInfo) -> dict[str, dict[str, Any]]:
    """Every keyword combination the database has, times every implementation that the CPU has, by description."""
    flags = [f for f in info.supported_impls if f != "fused" or "cpu" in info.supports_fused_on]
    found: dict[str, dict[str, Any]] = {}
    for given in info.optim_inputs_func(device="cpu"):
        plain = copy.deepcopy(given.kwargs) | dict.fromkeys(flags, False)
        found[given.desc] = plain
        found |= {f"{given.desc} & {flag}": plain | {flag: True} for flag in flags}
    return found


def tensors(info: OptimizerInfo, dtype: torch.dtype, differentiable: bool) -> list[torch.Tensor]:
    """Parameters that the optimizer takes: Muon wants matrices; a differentiable step no leaves."""
    shapes = [(10, 5), (5, 10)] if info.optim_cls.__name__ == "Muon" else [(10, 5), (10,), ()]
    if info.only_supports_sparse_grads:
        shapes = [(10, 5)]
    found = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    return [p.clone() for p in found] if differentiable else found  # type: ignore[misc]


def loss_of(parameters: list[torch.Tensor], pulls: list[torch.Tensor], sparse: bool) -> torch.Tensor:
    if sparse:
        rows = torch.nn.functional.embedding(torch.tensor([1, 1, 7]), parameters[0], sparse=True)
        return (rows * pulls[0][:3]).sum()
    return sum(((p - pull).abs() ** 2).sum() for p, pull in zip(parameters, pulls, strict=True))  # type: ignore[return-value]


def train(info: OptimizerInfo, kwargs: dict[str, Any], dtype: torch.dtype, logdir: Path | None) -> tuple[Any, Any]:
    """A few steps; the bits, and by step and tensor norms of weights, gradients and what the weights moved."""
    torch.manual_seed(0)
    differentiable = bool(kwargs.get("differentiable"))
    parameters = tensors(info, dtype, differentiable)
    optimizer = info.optim_cls(parameters, **copy.deepcopy(kwargs))
    model = torch.nn.ParameterList([] if differentiable else parameters)
    truth: dict[str, list[list[float]]] = {"weight_norm": [], "grad_norm_used": [], "moved": []}
    watching: Any = contextlib.nullcontext()
    if logdir is not None:
        watching = stabkit.watch(model, optimizer, logdir, tensorboard=False)
    with watching:
        for _ in range(STEPS):
            pulls = [torch.randn(p.shape, dtype=p.dtype) for p in parameters]

            def closure(pulls: list[torch.Tensor] = pulls) -> torch.Tensor:
                optimizer.zero_grad()
                loss = loss_of(parameters, pulls, info.only_supports_sparse_grads)
                loss.backward()
                return loss

            if differentiable:
                for p, pull in zip(parameters, pulls, strict=True):
                    p.grad = pull
            elif not info.step_requires_closure:
                closure()
            before = [wide(p) for p in parameters]
            grads = [wide(p.grad) for p in parameters] if not info.step_requires_closure else []
            optimizer.step(closure if info.step_requires_closure else None)
            truth["weight_norm"].append([norm(b) for b in before])
            truth["grad_norm_used"].append([norm(g) for g in grads or [p.grad for p in parameters]])
            truth["moved"].append([norm(wide(p) - b) for p, b in zip(parameters, before, strict=True)])
    return bits([parameters, [p.grad for p in parameters], optimizer.state_dict(), torch.get_rng_state()]), truth


def check(info: OptimizerInfo, kwargs: dict[str, Any], dtype: torch.dtype, logdir: Path) -> list[str]:
    """What is wrong with a watched run of a configuration."""
    expected, _ = train(info, kwargs, dtype, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StabkitWarning)  # a differentiable step has no model
        got, truth = train(info, kwargs, dtype, logdir)
    wrong = [] if got == expected else ["other bits than the unwatched run"]
    run = stabkit.load(logdir)
    wrong += [str(event) for event in run.events if event["event"] == "fault"]
    if len(run.steps) != STEPS:
        wrong.append(f"{len(run.steps)} steps")
    moved = np.array(truth.pop("moved"))
    weights = np.array(truth["weight_norm"])
    truth["update_ratio"] = (moved / weights).tolist()
    for metric, want in truth.items():
        table = run.table(metric).values[1:]
        if not np.allclose(table, want, rtol=1e-3, atol=0, equal_nan=True):
            wrong.append(f"{metric} is {table.tolist()} instead of {want}")
    return wrong


@pytest.mark.parametrize("info", optim_db, ids=lambda info: info.optim_cls.__name__)
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.complex64, marks=pytest.mark.slow)], ids=["real", "complex"]
)
def test_every_configuration(tmp_path: Path, info: OptimizerInfo, dtype: torch.dtype) -> None:
    """A configuration that raises without stabkit as well is named and has to have a known reason: fused steps are real."""
    if dtype.is_complex and not info.supports_complex:
        pytest.skip(f"torch's {info.optim_cls.__name__} takes no complex parameters")
    wrong: dict[str, Any] = {}
    ran = 0
    unable: dict[str, str] = {}
    for i, (description, kwargs) in enumerate(configurations(info).items()):
        name = f"{info.optim_cls.__name__}{', complex' if dtype.is_complex else ''}: {description}"
        try:
            train(info, kwargs, dtype, None)
        except Exception as error:
            unable[name] = f"{type(error).__name__}: {error}"
            assert dtype.is_complex and kwargs.get("fused") and "floating point" in str(error), unable
            continue
        ran += 1
        found = check(info, kwargs, dtype, tmp_path / str(i))
        wrong |= {name: found} if found else {}
    print(f"{info.optim_cls.__name__}: {ran} configurations; cannot run without stabkit either: {[*unable] or 'none'}")
    assert ran and not wrong


def test_the_database_is_not_empty() -> None:
    assert len(optim_db) >= 13 and sum(len(configurations(info)) for info in optim_db) > 150
