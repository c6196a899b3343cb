"""The Triton kernels against the oracle: on a GPU compiled, elsewhere in Triton's interpreter (see test_triton.py).

TRITON_INTERPRET=1 python -m pytest tests/statistics/kernels.py      # without a GPU: several minutes
python -m pytest tests/statistics/kernels.py                         # with one
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stabkit.hooks.bits import Bits, bits_of
from stabkit.hooks.statistics import AdamStep, TensorState, cpu, device, device_table, launch, reference
from stabkit.hooks.transfer import Batch
from stabkit.metric import TENSOR_COLUMNS
from tests.statistics.test_statistics_truth import (
    EXTREMES,
    STEP,
    Run,
    calm,
    check_after,
    check_before,
    flat,
    plain_state,
    same,
    total,
    truth_after,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of Inf and NaN

CUDA = torch.cuda.is_available()
WHERE = "cuda" if CUDA else "cpu"
CHUNK = 1024
"""Of the tests, so that few elements make many chunks."""

__all__ = ["calm"]


@pytest.fixture(autouse=True)
def by_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever Triton can read it measures; what falls to others is an error where a test does not allow it."""
    monkeypatch.setattr(cpu, "native", None)
    monkeypatch.setattr(device, "on_device", lambda tensor: True)
    monkeypatch.setattr(device, "_given_up", "")
    monkeypatch.setattr(device.stacked, "columns_of", _not_by_triton)
    for module in (launch, device_table):
        monkeypatch.setattr(module, "CHUNK", CHUNK)
    monkeypatch.setattr(launch, "WARPS", 4)
    monkeypatch.setattr(launch, "_THREADS", 128)
    device_table.release()
    yield
    device_table.release()
    assert not device.news()


def _not_by_triton(*_: Any) -> Any:
    raise AssertionError(f"Triton was given up: {device.news()}")


def only_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("measure_before", "measure_after"):
        monkeypatch.setattr(reference, name, _not_by_triton)


def there(state: TensorState) -> TensorState:
    """The same on the device of the test."""
    names = ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "before", "count", "lr")
    return TensorState(*(None if (t := getattr(state, name)) is None else t.detach().to(WHERE) for name in names))


def both(states: list[TensorState], steps: list[AdamStep]) -> None:
    states = [there(state) for state in states]
    check_before(states, steps)
    check_after(states, steps)


# ---- around real steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("options", [{"maximize": True}, {"amsgrad": True, "weight_decay": 0.3}], ids=str)
def test_around_real_steps(options: dict[str, object], snapshot: bool) -> None:
    shapes = [torch.randn(()), torch.empty(0, 3), torch.randn(1023), torch.randn(70, 31).t(), torch.randn(CHUNK + 900)]
    shapes.append(torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last))
    Run([torch.nn.Parameter(shape.to(WHERE)) for shape in shapes], lr=1e-3, **options).train(2, snapshot)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("moments", ["the same", "float32"])
def test_half_precision(dtype: torch.dtype, moments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only_triton(monkeypatch)
    states = []
    for size in (7, 1031):
        state = plain_state(size)
        of_moments = torch.float32 if moments == "float32" else dtype
        m, v = (t.to(of_moments) for t in (state.exp_avg, state.exp_avg_sq))
        p, g, before = (t.to(dtype) for t in (state.param, state.grad, state.before))
        states += [TensorState(p, g, m, v, before=before), TensorState(p, g.float(), m, v, v * 2)]
    step = replace(STEP, eps=1e-6)
    both(states, [step] * len(states))


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 513])
def test_around_the_ends_of_chunks(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    only_triton(monkeypatch)
    both([plain_state(size), plain_state(size, before=False)], [STEP, STEP])


def test_addresses_that_are_not_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    only_triton(monkeypatch)
    whole = plain_state(4000)
    state = TensorState(*(t[1:] for t in (whole.param, whole.grad, whole.exp_avg, whole.exp_avg_sq)))
    both([state], [STEP])


def test_each_tensor_may_have_its_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    only_triton(monkeypatch)
    states = [plain_state(size) for size in (3, 700, 2500)]
    both(states, [STEP, replace(STEP, lr=0.1, count=900, maximize=True), replace(STEP, decoupled=False, beta2=0.9)])


# ---- numbers that hurt -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["grad", "param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "before"])
def test_nonfinite_values_reach_sums_and_spare_extremes(where: str, value: float) -> None:
    state = plain_state(700)
    state.max_exp_avg_sq = state.exp_avg_sq * 2
    getattr(state, where)[600] = value
    both([state], [STEP])


def test_nothing_but_nan() -> None:
    full = torch.full((2000,), math.nan)
    both([TensorState(full, full, full, full)], [STEP])


@pytest.mark.parametrize("magnitude", [1e-18, 1e-9, 1.0, 1e9, 1e18])
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_magnitudes(magnitude: float, eps: float) -> None:
    g = torch.randn(700) * magnitude
    v = (g.double() ** 2 * 1e-3).float()
    states = []
    for weights in (1e-18, 1.0, 1e18):
        p = torch.randn(700) * weights
        states.append(TensorState(p, g, g * 0.1, v, before=p * 1.001))
        states.append(TensorState(p, g, g * 0.1, v, v * 4))
    both(states, [replace(STEP, eps=eps)] * len(states))


@pytest.mark.parametrize("case", EXTREMES)
def test_where_float_alone_would_lose(case: str) -> None:
    sizes, settings_ = EXTREMES[case]

    def draw(name: str, usual: float) -> torch.Tensor:
        levels = torch.tensor(sizes.get(name, (usual,)), dtype=torch.float64)
        spread = levels[torch.arange(700) % len(levels)] * (1 + torch.rand(700, dtype=torch.float64))
        return (spread if name.startswith("v") else spread * torch.randn(700).sign()).float()

    p, g, m, v = draw("p", 1.0), draw("g", 1e-2), draw("m", 1e-3), draw("v", 1e-4)
    vmax = draw("vmax", 1.0) if "vmax" in sizes else None
    step = replace(STEP, **settings_)
    both([TensorState(p, g, m, v, vmax, before) for before in (None, p * 1.001)], [step, step])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    low=st.tuples(*[st.integers(-18, 18)] * 4),
    high=st.tuples(*[st.integers(-18, 18)] * 4),
    eps=st.sampled_from([1e-30, 1e-16, 1e-8, 1e-3]),
    lr=st.sampled_from([0.0, 1e-9, 1e-3, 10.0]),
    count=st.sampled_from([1, 7, 1000, 10**6]),
    size=st.integers(1, 1100),
    seed=st.integers(0, 2**31),
)
def test_mixed_magnitudes(
    low: tuple[int, ...], high: tuple[int, ...], eps: float, lr: float, count: int, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)

    def draw(place: int) -> np.ndarray:
        a, b = sorted((low[place], high[place]))
        return rng.choice([-1.0, 1.0, 0.0], p=[0.45, 0.45, 0.1], size=size) * 10.0 ** rng.uniform(a, b, size=size)

    p, g, m, root = (draw(i) for i in range(4))
    state = TensorState(*(torch.from_numpy(x.astype(np.float32)) for x in (p, g, m, root**2)))
    state.before = torch.from_numpy((p * (1 + 1e-3 * rng.normal(size=size))).astype(np.float32))
    both([state, replace(state, before=None)], [replace(STEP, eps=eps, lr=lr, count=count)] * 2)


@pytest.mark.parametrize("eps", [1e-8, 2e-8, 3e-8, 1e-6, 1e-4])
def test_counts_at_the_limit_of_eps_are_exact(eps: float) -> None:
    limit = np.float32((10 * eps) ** 2 * (1 - STEP.beta2**STEP.count))
    v = torch.from_numpy(limit.view(np.int32) + np.arange(-500, 500, dtype=np.int32)).view(torch.float32)
    v = torch.cat([v, torch.zeros(10), torch.tensor([1e-45, 1e-38])])
    g = torch.ones_like(v)
    both([TensorState(g, g, g, v)], [replace(STEP, eps=eps)])


# ---- what is absent, or on the device --------------------------------------------------------------------------------


def test_absent_tensors_leave_their_columns_empty() -> None:
    states = []
    for absent in ("grad", "exp_avg", "exp_avg_sq", "before"):
        states.append(plain_state(900))
        setattr(states[-1], absent, None)
    both(states, [STEP] * 4)


def test_count_zero_has_no_bias_correction() -> None:
    both([plain_state(900)], [replace(STEP, count=0)])


@pytest.mark.parametrize("count", [0.0, 1.0, 5000.0])
def test_count_and_rate_are_read_where_they_are(count: float) -> None:
    states = [plain_state(size) for size in (900, 2100)]
    want, _ = truth_after(states[1], replace(STEP, count=count, lr=0.25))
    for state in states:
        state.count, state.lr = torch.tensor(count), torch.tensor(0.25)
    got = measured("after", states, [replace(STEP, count=77, lr=math.nan)] * 2)[1]
    for (name, value), found in zip(want.items(), got, strict=True):
        same(name, found, value, 1e3 if name == "weight_update_dot" else 0.0)


def test_what_cannot_be_read_is_left_to_others() -> None:
    state = plain_state(900)
    gaps = replace(state, grad=torch.randn(900, 2)[:, 0])
    double = TensorState(*(t.double() for t in (state.param, state.grad, state.exp_avg, state.exp_avg_sq)))
    sparse = replace(state, grad=state.grad.to_sparse())
    empty = TensorState(*[torch.zeros(0)] * 4)
    states = [state, gaps, double, sparse, empty, state]
    out = np.full((6, 16), np.nan)
    batch = Batch()
    states = [there(s) for s in states]
    assert device.measure("after", states, [STEP] * 6, range(6), batch, out) == [1, 2, 3, 4]
    batch.fetch()
    assert np.isnan(out[1:5]).all() and np.array_equal(out[0], out[5])


# ---- one read for all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", [False, True], ids=["triton", "stacked"])
@pytest.mark.parametrize("options", [{}, {"maximize": True, "weight_decay": 0.3}, {"amsgrad": True}], ids=str)
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_all_columns_after_the_step(kind: type, options: dict[str, Any], stack: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was before it is worked back: against what was really there."""
    if stack:
        monkeypatch.undo()
        monkeypatch.setattr(device, "on_device", lambda tensor: True)
        monkeypatch.setattr(device, "_given_up", "no Triton in this test")
    params = [torch.nn.Parameter(torch.randn(size, device=WHERE)) for size in (300, 1100)]
    run = Run(params, kind, lr=1e-3, **options)
    for number in range(3):
        for p in params:
            p.grad = torch.randn_like(p) * 1e-2
        if number:
            states = [run.state(p) for p in params]
            pairs = [((s.param, s.param), (s.grad, s.exp_avg), (s.exp_avg, s.exp_avg)) for s in states]
            want = np.array([[total(flat(x) * flat(y)) for x, y in pair] for pair in pairs])
            want[:, 1] *= -1 if options.get("maximize") else 1
            scale = np.sqrt([[total(flat(s.grad) ** 2) * total(flat(s.exp_avg) ** 2)] for s in states])
        run.optimizer.step()
        states, steps = [run.state(p) for p in params], [run.step_of(p) for p in params]
        got = measured("step", states, steps)
        np.testing.assert_allclose(got[:, 3:], measured("after", states, steps), rtol=1e-12)
        if number == 0:
            assert np.isnan(got[:, 1:3]).all() and not np.isnan(got[:, 0]).any()
        else:
            np.testing.assert_allclose(got[:, [0, 2]], want[:, [0, 2]], rtol=2e-6)
            assert (np.abs(got[:, 1:2] - want[:, 1:2]) <= 2e-6 * scale).all()


# ---- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_elements_whose_bits_are_the_same(dtype: torch.dtype) -> None:
    """As counted tensor by tensor; one has no gradient, one has one of another dtype."""
    params = [torch.randn(size, device=WHERE).to(dtype) for size in (5, 1000, 8191, 8192, 20_000, 700)]
    grads = [torch.randn_like(p) * (torch.rand_like(p) < 0.5) for p in params]
    states = [TensorState(p, g, None, None) for p, g in zip(params, grads, strict=True)]
    states[3].grad, states[5].grad = None, grads[5].float()
    together, alone = bits_of(range(6), states), [Bits(i, p) for i, p in enumerate(params)]
    assert len(together) == 1
    for p in params:
        p[::3] += 1
    tables = []
    for way in (together, alone):
        tables.append(np.full((6, len(TENSOR_COLUMNS)), np.nan))
        batch = Batch()
        for bits in way:
            bits.compare(states, batch, tables[-1])
        batch.fetch()
    assert np.array_equal(*tables, equal_nan=True) and np.isfinite(tables[0]).sum() == 10


# ---- manners ---------------------------------------------------------------------------------------------------------


def measured(mode: str, states: list[TensorState], steps: list[AdamStep]) -> np.ndarray:
    out = np.full((len(states), {"before": 3, "after": 16, "step": 19}[mode]), np.nan)
    batch = Batch()
    states = [there(state) for state in states]
    assert not device.measure(mode, states, steps, range(len(states)), batch, out)
    batch.fetch()
    return out


def test_the_bits_are_the_same_every_time() -> None:
    states = [plain_state(size) for size in (3, 1500, 2600)]
    states[1].grad[7] = 1e25  # one chunk goes the careful way
    lines = [measured("step", states, [STEP] * 3).tobytes() for _ in range(2)]
    device_table.release()
    lines.append(measured("step", states, [STEP] * 3).tobytes())
    assert len(set(lines)) == 1


def test_nothing_is_asked_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    states, steps = [there(plain_state(size)) for size in (3, 1500)], [STEP, STEP]
    for state in states:
        state.count = torch.tensor(3.0, device=WHERE)
    measured("step", states, steps)  # what is made once is made
    batch, out = Batch(), np.empty((2, 19))
    if CUDA:
        torch.cuda.set_sync_debug_mode("error")
        try:
            device.measure("step", states, steps, range(2), batch, out)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    launches: list[int] = []
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "to", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, name, _asked)
        for kernel in ("before_chunks", "after_chunks", "merge_chunks"):  # the interpreter itself asks
            patch.setattr(launch, kernel, _Counted(launches))
        patch.setattr(torch.cuda, "synchronize", _asked)
        device.measure("step", states, steps, range(2), batch, out)
    assert len(launches) == 2


def _asked(*_: Any, **__: Any) -> Any:
    raise AssertionError("something was asked of a device")


class _Counted:
    """A kernel that only counts its launches."""

    def __init__(self, launches: list[int]) -> None:
        self._launches = launches

    def __getitem__(self, grid: tuple[int]) -> Any:
        return lambda *args, **options: self._launches.append(grid[0])


def test_rows_are_sent_only_when_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [there(plain_state(900))]
    states[0].count = torch.tensor(3.0, device=WHERE)
    sent = []
    slot = device_table.Table._slot
    monkeypatch.setattr(device_table.Table, "_slot", lambda table: sent.append(1) or slot(table))
    for _ in range(3):
        out = np.empty((1, 16))
        device.measure("after", states, [STEP], [0], Batch(), out)
    assert len(sent) == 1
    states[0].grad = states[0].grad.clone()
    device.measure("after", states, [STEP], [0], Batch(), np.empty((1, 16)))
    assert len(sent) == 2


def test_a_failure_is_told_once_and_the_numbers_come_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    state = plain_state(900)
    want = measured("after", [state], [STEP])
    monkeypatch.undo()
    monkeypatch.setattr(device, "on_device", lambda tensor: True)
    monkeypatch.setattr(device, "_given_up", "")
    monkeypatch.setattr(launch, "columns_of", _asked)
    for _ in range(2):
        np.testing.assert_allclose(measured("after", [state], [STEP]), want, rtol=2e-6)
    assert device.news() == "AssertionError: something was asked of a device" and not device.news()
    assert device.backend() == "stacked"
