"""What the recorders cost in Python, apart from the passes over the tensors: 52 tensors too small to matter themselves."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_


@pytest.mark.slow
def test_the_cost_of_python(watching: Any) -> None:
    """Measured against torch's own Python on the same machine at the same time: a fused step and a clip."""
    parameters = [torch.nn.Parameter(torch.ones(8)) for _ in range(52)]
    model = torch.nn.ParameterList(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    for p in parameters:
        p.grad = torch.randn(8)

    def shortest(repeats: int = 500) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            times.append(time.perf_counter() - start)
        return min(times)

    shortest(50)
    unwatched = shortest()
    with watching(model, optimizer):
        watched = shortest()
    print(f"unwatched {unwatched * 1e3:.2f} ms, watched {watched * 1e3:.2f} ms")
    assert watched < 5 * unwatched
