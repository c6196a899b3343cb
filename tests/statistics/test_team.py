"""The fast path works in torch's own threads, and gives the same numbers without them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from stabkit.hooks.statistics import AdamStep, TensorState, backend, cpu, measure_after, measure_before, team


@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP runtime is looked for on Linux only")
def test_torchs_team_is_found_where_torch_uses_openmp() -> None:
    if "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this torch was built without OpenMP")
    assert team.parallel != 0


@pytest.mark.skipif(backend() != "c", reason="the extension was not built")
def test_the_numbers_do_not_depend_on_whose_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shape = (1000, 700)
    state = TensorState(torch.randn(shape), torch.randn(shape), torch.randn(shape), torch.rand(shape))
    step = AdamStep(1e-3, 0.9, 0.999, 1e-8, 0.1, 5, False, True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for address in (team.parallel, 0):
                monkeypatch.setattr(cpu, "parallel", address)
                results.append(np.concatenate([measure_before([state], [step]), measure_after([state], [step])], axis=1))
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(result, results[0], equal_nan=True) for result in results)
