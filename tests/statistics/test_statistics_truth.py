"""The per-tensor sums against an oracle in plain numpy float64, for both backends and around real optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stabkit.hooks.statistics import (
    AFTER_COLUMNS,
    BEFORE_COLUMNS,
    AdamStep,
    TensorState,
    backend,
    cpu,
    device,
    measure_after,
    measure_before,
    measure_moves,
    measure_sizes,
)

COUNTS = {"grad_nonfinite", "grad_zeros", "eps_count", "weight_nonfinite"}
STEP = AdamStep(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, count=3, maximize=False, decoupled=True)


@pytest.fixture(params=["c", "reference", "stacked"], autouse=True)
def backend_in_use(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs on every backend that needs neither a device nor Triton (see test_triton.py)."""
    if request.param == "reference":
        monkeypatch.setattr(cpu, "native", None)
    elif request.param == "stacked":  # as on a device without Triton
        monkeypatch.setattr(cpu, "native", None)
        monkeypatch.setattr(device, "on_device", lambda tensor: True)
        monkeypatch.setattr(device, "_given_up", "no Triton in this test")
    elif backend() != "c":
        pytest.skip("the extension was not built")
    return str(request.param)


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """A known seed, and one thread: tests share the machine, and torch's threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


# ---- the oracle ------------------------------------------------------------------------------------------------------


def flat(tensor: torch.Tensor | None) -> np.ndarray | None:
    """A tensor's elements in logical order as float64; a complex one's real and imaginary parts."""
    if tensor is None:
        return None
    array = tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64).contiguous().numpy()
    return array.reshape(-1).copy().view(np.float64)


def total(terms: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float(np.sum(terms))  # float64, pairwise


def absmax(x: np.ndarray) -> float:
    finite = np.abs(x[np.isfinite(x)])
    return float(finite.max()) if finite.size else 0.0


def nonfinite(x: np.ndarray) -> int:
    return int(x.size - np.isfinite(x).sum())


def truth_before(state: TensorState, step: AdamStep) -> dict[str, float]:
    p, g, m = flat(state.param), flat(state.grad), flat(state.exp_avg)
    sign = -1 if step.maximize else 1
    return {
        "weight_sumsq": total(p**2),
        "momentum_dot": math.nan if g is None or m is None else total(sign * g * m),
        "momentum_sumsq": math.nan if m is None else total(m**2),
    }


def truth_after(state: TensorState, step: AdamStep) -> tuple[dict[str, float], float]:
    """The columns, and the scale that the error of `weight_update_dot` is measured by."""
    p, g, m, v = flat(state.param), flat(state.grad), flat(state.exp_avg), flat(state.exp_avg_sq)
    vmax, snapshot = flat(state.max_exp_avg_sq), flat(state.before)
    row = dict.fromkeys(AFTER_COLUMNS, math.nan)
    dot_scale = math.nan
    with np.errstate(all="ignore"):
        row["weight_absmax"], row["weight_nonfinite"] = absmax(p), nonfinite(p)
        if g is not None:
            row["grad_used_sumsq"], row["grad_absmax"] = total(g**2), absmax(g)
            row["grad_nonfinite"] = nonfinite(g)
            row["grad_zeros"] = int((g == 0).sum())
        if m is not None:
            row["exp_avg_sumsq"] = total(m**2)
        if v is not None and step.count > 0:
            bias1, bias2 = 1 - step.beta1**step.count, 1 - step.beta2**step.count
            vhat = v / bias2
            finite = vhat[np.isfinite(vhat)]
            row["exp_avg_sq_sum"] = total(vhat)
            if finite.size:
                row["exp_avg_sq_min"], row["exp_avg_sq_max"] = finite.min(), finite.max()
            row["eps_count"] = int(((v > 0) & (np.sqrt(vhat) < 10 * step.eps)).sum())
            d2 = vhat if vmax is None else vmax / bias2
            if g is not None:
                row["rms_sum"] = total(g**2 / np.maximum(d2, step.eps**2))
            if m is not None:
                decay = step.lr * step.weight_decay * step.decoupled
                adam = step.lr * (m / bias1) / (np.sqrt(d2) + step.eps)
                before = (p + adam) / (1 - decay) if snapshot is None else snapshot
                update = -decay * before - adam
                row["update_sumsq"], row["update_absmax"] = total(update**2), absmax(update)
                row["weight_update_dot"] = total(before * update)
                dot_scale = math.sqrt(total(before**2)) * math.sqrt(total(update**2))
        if snapshot is not None:
            row["applied_update_sumsq"] = total((p - snapshot) ** 2)
    return row, dot_scale


def same(name: str, got: float, want: float, scale: float = 0.0, tolerance: float = 2e-6) -> None:
    if math.isnan(want):
        assert math.isnan(got), f"{name}: {got} instead of NaN"
    elif math.isinf(want) or name in COUNTS:
        assert got == want, f"{name}: {got} instead of {want}"
    else:
        assert abs(got - want) <= tolerance * max(abs(want), scale), f"{name}: {got} instead of {want}"


def check_before(states: list[TensorState], steps: list[AdamStep]) -> None:
    got = measure_before(states, steps)
    assert got.shape == (len(states), 3) and got.dtype == np.float64
    for line, state, step in zip(got, states, steps, strict=True):
        want = truth_before(state, step)
        scale = 0.0
        if state.grad is not None and state.exp_avg is not None:
            with np.errstate(all="ignore"):
                scale = math.sqrt(total(flat(state.grad) ** 2)) * math.sqrt(total(flat(state.exp_avg) ** 2))
        for name, value in zip(BEFORE_COLUMNS, line, strict=True):
            same(name, value, want[name], scale if name == "momentum_dot" else 0.0)


def check_after(states: list[TensorState], steps: list[AdamStep], tolerance: float = 2e-6) -> np.ndarray:
    got = measure_after(states, steps)
    assert got.shape == (len(states), 16) and got.dtype == np.float64
    for line, state, step in zip(got, states, steps, strict=True):
        want, dot_scale = truth_after(state, step)
        for name, value in zip(AFTER_COLUMNS, line, strict=True):
            same(name, value, want[name], dot_scale if name == "weight_update_dot" else 0.0, tolerance)
    return got


# ---- around real steps -----------------------------------------------------------------------------------------------


class Run:
    """A real optimizer over the given parameters, measured at every step."""

    def __init__(self, params: list[torch.nn.Parameter], kind: type = torch.optim.AdamW, **options: object) -> None:
        self.params = params
        self.optimizer = kind(params, **options)
        self.decoupled = kind is torch.optim.AdamW

    def state(self, param: torch.nn.Parameter, before: torch.Tensor | None = None) -> TensorState:
        state = self.optimizer.state[param]
        return TensorState(
            param, param.grad, state.get("exp_avg"), state.get("exp_avg_sq"), state.get("max_exp_avg_sq"), before
        )

    def step_of(self, param: torch.nn.Parameter) -> AdamStep:
        group = self.optimizer.param_groups[0]
        count = float(self.optimizer.state[param].get("step", 0))
        beta1, beta2 = group["betas"]
        return AdamStep(
            group["lr"], beta1, beta2, group["eps"], group["weight_decay"], count, group["maximize"], self.decoupled
        )

    def train(self, steps: int, snapshot: bool, grad_scale: float = 1e-2) -> np.ndarray:
        got = np.empty(0)
        for _ in range(steps):
            for p in self.params:
                p.grad = torch.randn_like(p) * grad_scale
            states = [self.state(p) for p in self.params]
            check_before(states, [self.step_of(p) for p in self.params])
            before = [p.detach().clone() if snapshot else None for p in self.params]
            self.optimizer.step()
            states = [self.state(p, b) for p, b in zip(self.params, before, strict=True)]
            got = check_after(states, [self.step_of(p) for p in self.params])
        return got


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    """The shapes that hurt: 0-d, one element, empty, odd length, over several pieces, transposed, channels_last."""
    tensors = [
        torch.randn(()),
        torch.randn(1),
        torch.empty(0, 3),
        torch.randn(1023),
        torch.randn(300, 257),
        torch.randn(70, 31).t(),
        torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(6, 1, 1, 4).to(memory_format=torch.channels_last),
    ]
    return [torch.nn.Parameter(t.to(dtype)) for t in tensors]


@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.3}], ids=str)
@pytest.mark.parametrize("implementation", ["single", "foreach", "fused"])
def test_around_real_adamw_steps(implementation: str, options: dict[str, object], snapshot: bool) -> None:
    chosen = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}[implementation]
    Run(parameters(), lr=1e-3, **options, **chosen).train(steps=3, snapshot=snapshot)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_c_reads_every_number_of_16_bits(dtype: torch.dtype) -> None:
    """All 65,536 of them, one at a time; and all finite ones at once, out of line with the blocks that C goes in."""
    if cpu.native is None:
        pytest.skip("the extension was not built, or is left out here")
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    out = np.full((len(numbers), 4), np.nan)
    assert cpu.measure_sizes([*numbers], out) == []
    exact = numbers.double().numpy()
    finite = np.isfinite(exact)
    assert np.array_equal(out[:, 0], exact**2, equal_nan=True)
    assert np.array_equal(out[:, 1], np.where(finite, np.abs(exact), 0))
    assert np.array_equal(out[:, 2], ~finite) and np.array_equal(out[:, 3], exact == 0)

    usual = numbers[torch.from_numpy(finite & (np.abs(exact) < 1e4) & (np.abs(exact) > 1e-4))][:-3]
    state = TensorState(usual, usual.flip(0), usual.float(), usual.abs(), None, usual * 2)
    rows = np.full((2, 16), np.nan)
    assert cpu.measure_after([state, replace(state, before=None)], [STEP, STEP], rows) == []
    before = np.full((1, 3), np.nan)
    assert cpu.measure_before([state], [STEP], before) == []
    wide = TensorState(*(t.float() for t in (usual, usual.flip(0), usual, usual.abs())), None, usual.float() * 2)
    np.testing.assert_array_equal(rows, measure_after([wide, replace(wide, before=None)], [STEP, STEP]))
    np.testing.assert_array_equal(before, measure_before([wide], [STEP]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64], ids=str)
def test_other_dtypes_around_real_steps(dtype: torch.dtype) -> None:
    Run(parameters(dtype), lr=1e-2, eps=1e-6, amsgrad=True, foreach=False).train(steps=3, snapshot=True)


def test_adam_keeps_its_decay_out_of_the_update() -> None:
    run = Run([torch.nn.Parameter(torch.randn(500))], torch.optim.Adam, lr=1e-3, weight_decay=0.1)
    got = run.train(steps=3, snapshot=True)[0]
    applied, intended = (got[AFTER_COLUMNS.index(f"{k}_sumsq")] for k in ("applied_update", "update"))
    assert applied == pytest.approx(intended, rel=1e-3)


def test_the_intended_update_is_the_one_torch_applies() -> None:
    """Not against our own formula: against what the weights did."""
    run = Run([torch.nn.Parameter(torch.randn(5000))], lr=1e-2, weight_decay=0.5, amsgrad=True, maximize=True)
    got = dict(zip(AFTER_COLUMNS, run.train(steps=4, snapshot=True)[0], strict=True))
    assert got["update_sumsq"] == pytest.approx(got["applied_update_sumsq"], rel=1e-4)


def test_weights_that_were_zero_are_reconstructed_in_double() -> None:
    Run([torch.nn.Parameter(torch.zeros(3000))], lr=1e-3).train(steps=1, snapshot=False)


def test_gradient_in_another_memory_order_than_the_parameter() -> None:
    p = torch.nn.Parameter(torch.randn(40, 30))
    m, v = torch.randn(40, 30) * 1e-3, torch.rand(40, 30) * 1e-6
    for grad in (torch.randn(30, 40).t(), torch.randn(40, 60)[:, ::2], torch.randn(40, 1).expand(40, 30)):
        check_before([TensorState(p, grad, m, v)], [STEP])
        check_after([TensorState(p, grad, m, v)], [STEP])


def test_large_tensors_are_the_same_with_any_number_of_threads() -> None:
    state = plain_state(400_003)
    lines = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        lines.append(check_after([state, state], [STEP, STEP]))
        check_before([state, state], [STEP, STEP])
    if backend() == "c":
        assert np.array_equal(lines[0], lines[1], equal_nan=True)


# ---- numbers that hurt -----------------------------------------------------------------------------------------------


def plain_state(size: int = 3000, before: bool = True) -> TensorState:
    p, g, m = torch.randn(size), torch.randn(size) * 1e-2, torch.randn(size) * 1e-3
    return TensorState(p, g, m, torch.rand(size) * 1e-5, before=p + 1e-3 * torch.randn(size) if before else None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["grad", "param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "before"])
@pytest.mark.parametrize("place", [0, 1500, 2999])
def test_nonfinite_values_reach_sums_and_spare_extremes(where: str, value: float, place: int) -> None:
    state = plain_state()
    state.max_exp_avg_sq = state.exp_avg_sq * 2
    getattr(state, where)[place] = value
    check_after([state], [STEP])
    check_before([state], [STEP])


def test_nothing_but_nan() -> None:
    full = torch.full((2000,), math.nan)
    check_after([TensorState(full, full, full, full)], [STEP])


@pytest.mark.parametrize("magnitude", [1e-18, 1e-12, 1e-6, 1.0, 1e6, 1e12, 1e18])
@pytest.mark.parametrize("weights", [1e-18, 1.0, 1e18])
@pytest.mark.parametrize("eps", [1e-8, 1e-16, 0.0])
def test_magnitudes(magnitude: float, weights: float, eps: float) -> None:
    g = torch.randn(2500) * magnitude
    v = (g.double() ** 2 * 1e-3).float()
    p = torch.randn(2500) * weights
    state = TensorState(p, g, g * 0.1, v, before=p * 1.001)
    check_before([state], [STEP])
    check_after([state], [replace(STEP, eps=eps)])
    check_after([replace(state, max_exp_avg_sq=v * 4)], [replace(STEP, eps=eps)])


EXTREMES: dict[str, tuple[dict[str, tuple[float, ...]], dict[str, float]]] = {
    # what each tensor is drawn from (mixed within the tensor where there are several), and the step's settings
    "d denormal when squared": ({"g": (1e-21,), "m": (1e-21,), "v": (1e-42,)}, {"eps": 0.0}),
    "d overflowing when squared": ({"g": (1e18, 1e-2), "m": (1e18, 1e-2), "v": (1e37, 1e-4)}, {}),
    "d overflowing under amsgrad": ({"g": (1e18, 1e-2), "m": (1e18, 1e-2), "v": (1e-4,), "vmax": (1e37, 1e-4)}, {}),
    "eps overflowing when squared": ({"g": (1e18,), "m": (1e18,)}, {"eps": 1e20}),
    "update vanishing": ({"m": (1e-18,), "v": (1e6,)}, {"weight_decay": 0.0}),
    "update almost vanishing": ({"m": (1e-18,), "v": (1.0,)}, {"weight_decay": 0.0}),
    "update overflowing": ({"m": (1e18,), "v": (1e-36,)}, {"lr": 1.0, "eps": 1e-16}),
    "one update overflowing": ({"m": (1e18, 1e-3), "v": (1e-36, 1.0)}, {"lr": 1.0, "eps": 1e-16}),
    "g over d vanishing": ({"g": (1e-18,), "v": (1e12,)}, {}),
    "g over d overflowing": ({"g": (1e18,), "v": (1e-36,)}, {"eps": 1e-16}),
    "weights vanishing": ({"p": (1e-33,), "m": (1e-10,), "v": (1e-2,)}, {"lr": 1e-4, "weight_decay": 0.0}),
    "weights overflowing": ({"p": (1e27,), "m": (1e7,), "v": (1e-2,)}, {"lr": 1e5, "weight_decay": 0.0}),
    "weights cancelling": ({"p": (1e-5,), "m": (1e-2,), "v": (1e-4,)}, {"lr": 0.1}),
    "almost no rate": ({"m": (1e30,), "v": (1e-2,)}, {"lr": 1e-42, "weight_decay": 0.0}),
    "decay undoing the weights": ({}, {"lr": 1.0, "weight_decay": 0.999999}),
    "decay removing the weights": ({}, {"lr": 1.0, "weight_decay": 1.0}),
    "no rate": ({}, {"lr": 0.0}),
    "nothing moves": ({"m": (0.0,), "g": (0.0,), "v": (0.0,)}, {"weight_decay": 0.0}),
}


@pytest.mark.parametrize("case", EXTREMES)
def test_where_float_alone_would_lose(case: str) -> None:
    sizes, settings_ = EXTREMES[case]

    def draw(name: str, usual: float) -> torch.Tensor:
        levels = torch.tensor(sizes.get(name, (usual,)), dtype=torch.float64)
        spread = levels[torch.arange(2500) % len(levels)] * (1 + torch.rand(2500, dtype=torch.float64))
        return (spread if name.startswith("v") else spread * torch.randn(2500).sign()).float()

    p, g, m, v = draw("p", 1.0), draw("g", 1e-2), draw("m", 1e-3), draw("v", 1e-4)
    vmax = draw("vmax", 1.0) if "vmax" in sizes else None
    step = replace(STEP, **settings_)
    check_before([TensorState(p, g, m, v)], [step])
    for before in (None, p * 1.001):
        check_after([TensorState(p, g, m, v, vmax, before)], [step])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    low=st.tuples(*[st.integers(-18, 18)] * 4),
    high=st.tuples(*[st.integers(-18, 18)] * 4),
    eps=st.sampled_from([1e-30, 1e-16, 1e-8, 1e-3]),
    lr=st.sampled_from([0.0, 1e-9, 1e-3, 10.0]),
    count=st.sampled_from([1, 7, 1000, 10**6]),
    size=st.integers(1, 2600),
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
    step = replace(STEP, eps=eps, lr=lr, count=count)
    check_before([state], [step])
    check_after([state, replace(state, before=None)], [step, step])


@pytest.mark.parametrize("ratio", [1e-6, 1e-3, 0.01, 1.0, 100.0])
def test_weights_reconstructed_without_a_snapshot(ratio: float) -> None:
    """Against the true weights before the step; the error allowed is what rounding p after the step costs."""
    p = torch.nn.Parameter(torch.randn(20_000) * 1e-3 / ratio)
    run = Run([p], lr=1e-3, weight_decay=0.1)
    run.train(steps=2, snapshot=False)
    p.grad = torch.randn_like(p)
    before = p.detach().clone()
    run.optimizer.step()
    place = AFTER_COLUMNS.index("weight_update_dot")
    step = run.step_of(p)
    with_snapshot, without = (measure_after([run.state(p, b)], [step])[0][place] for b in (before, None))
    _, scale = truth_after(run.state(p, before), step)
    assert abs(with_snapshot - without) <= max(1e-6, 1e-6 * ratio) * scale


@pytest.mark.parametrize("eps", [1e-8, 2e-8, 3e-8, 0.7e-8, 1e-6, 1e-4])
def test_counts_at_the_limit_of_eps_are_exact(eps: float) -> None:
    limit = np.float32((10 * eps) ** 2 * (1 - STEP.beta2**STEP.count))
    v = torch.from_numpy(limit.view(np.int32) + np.arange(-500, 500, dtype=np.int32)).view(torch.float32)
    v = torch.cat([v, torch.zeros(10), torch.tensor([1e-45, 1e-38])])
    g = torch.ones_like(v)
    got = check_after([TensorState(g, g, g, v)], [replace(STEP, eps=eps)])[0]
    assert 400 < got[AFTER_COLUMNS.index("eps_count")] < 600


# ---- what is absent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", ["grad", "exp_avg", "exp_avg_sq", "before"])
def test_an_absent_tensor_leaves_its_columns_empty(absent: str) -> None:
    state = plain_state()
    setattr(state, absent, None)
    check_before([state], [STEP])
    check_after([state], [STEP])


def test_count_zero_has_no_bias_correction() -> None:
    check_after([plain_state()], [replace(STEP, count=0)])


def test_sparse_gradient_counts_as_absent() -> None:
    state = plain_state()
    dense = replace(state, grad=None)
    sparse = replace(state, grad=state.grad.to_sparse())
    assert np.array_equal(measure_after([sparse], [STEP]), measure_after([dense], [STEP]), equal_nan=True)


def test_no_tensors_at_all() -> None:
    assert measure_before([], []).shape == (0, 3) and measure_after([], []).shape == (0, 16)


def test_mismatches_are_refused() -> None:
    with pytest.raises(ValueError, match="one step per tensor"):
        measure_after([plain_state()], [])
    with pytest.raises(ValueError, match="differ in shape"):
        measure_after([replace(plain_state(), grad=torch.ones(7))], [STEP])


# ---- manners ---------------------------------------------------------------------------------------------------------


def test_writes_nothing_and_draws_no_random_numbers() -> None:
    run = Run(parameters(), lr=1e-3, amsgrad=True)
    run.train(steps=1, snapshot=False)
    states = [run.state(p, p.detach().clone()) for p in run.params]
    tensors = [t for s in states for t in (s.param, s.grad, s.exp_avg, s.exp_avg_sq, s.max_exp_avg_sq, s.before)]
    copies = [t.detach().clone() for t in tensors]
    versions, random = [t._version for t in tensors], torch.get_rng_state()
    steps = [run.step_of(p) for p in run.params]
    measure_before(states, steps)
    measure_after(states, steps)
    assert all(torch.equal(t, c) for t, c in zip(tensors, copies, strict=True))
    assert versions == [t._version for t in tensors]
    assert torch.equal(random, torch.get_rng_state())


def test_holds_under_the_users_contexts() -> None:
    state = plain_state()
    mixed = replace(state, grad=state.grad.double())  # through the reference in any case
    want = measure_after([state, mixed], [STEP, STEP])
    saved = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
            assert np.array_equal(measure_after([state, mixed], [STEP, STEP]), want)
            with torch._C.DisableTorchFunction():
                assert np.array_equal(measure_after([state, mixed], [STEP, STEP]), want)
    finally:
        torch.set_default_dtype(saved)


def test_backends_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(parameters(), lr=1e-3)
    run.train(steps=2, snapshot=False)
    states, steps = [run.state(p) for p in run.params], [run.step_of(p) for p in run.params]
    here = measure_after(states, steps)
    monkeypatch.setattr(cpu, "native", None)
    plain = measure_after(states, steps)
    np.testing.assert_allclose(here, plain, rtol=2e-6, atol=0)
    for column in (i for i, name in enumerate(AFTER_COLUMNS) if name in COUNTS):
        assert np.array_equal(here[:, column], plain[:, column], equal_nan=True)


# ---- tensors by themselves -------------------------------------------------------------------------------------------


def of_any_kind() -> dict[str, torch.Tensor]:
    """Tensors of every kind a gradient can have."""
    bad = torch.randn(40, 50)
    bad[3, 4], bad[5, 6], bad[7] = math.nan, -math.inf, 0.0
    index = torch.tensor([[1, 1, 4, 6]])
    values = torch.randn(4, 3)
    values[2, 1] = 0.0
    return {
        "plain": torch.randn(300, 200), "long": torch.randn(200_001), "transposed": torch.randn(6, 5).t(),
        "gaps": torch.randn(10, 3)[::2], "empty": torch.zeros(0, 3), "scalar": torch.tensor(-3.0),
        "zeros": torch.zeros(5), "bad": bad,
        "bfloat16": torch.randn(70, 9).bfloat16(), "float64": torch.randn(9).double() * 1e30, "tiny": torch.randn(9) * 1e-18,
        "huge": torch.randn(2000) * 1e18, "complex": torch.randn(4, 4, dtype=torch.complex64),
        "sparse": torch.sparse_coo_tensor(index, values, (8, 3)), "no entries": torch.sparse_coo_tensor(size=(8, 3)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", of_any_kind())
def test_the_size_of_any_tensor(kind: str) -> None:
    tensor = of_any_kind()[kind]
    version = tensor._version
    x = flat(tensor.to_dense())
    assert x is not None
    ((sumsq, absmax, nonfinite, zeros),) = measure_sizes([tensor])
    finite = np.abs(x[np.isfinite(x)])
    np.testing.assert_allclose(sumsq, np.sum(x * x), rtol=1e-6)
    np.testing.assert_allclose(absmax, finite.max() if finite.size else 0.0, rtol=1e-12)
    assert (nonfinite, zeros) == (np.sum(~np.isfinite(x)), np.sum(x == 0))
    assert tensor._version == version
    if kind == "sparse":
        assert not tensor.is_coalesced()


def test_a_layout_that_is_not_known_is_missing() -> None:
    assert np.isnan(measure_sizes([torch.eye(4).to_sparse_csr()])).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("rate", [1e-2, 1e-6])
def test_what_a_step_did(dtype: torch.dtype, rate: float) -> None:
    for shape in ((300, 200), (7,), (), (0, 3)):
        before = torch.randn(shape).to(dtype)
        after = before - (torch.randn(shape) * rate).to(dtype)
        if len(shape) == 2 and shape[0]:
            before, after = before.t(), after.t()
        a, b = flat(after), flat(before)
        assert a is not None and b is not None
        copy = before.clone()
        ((sumsq, dot),) = measure_moves([after], [copy])
        np.testing.assert_allclose(sumsq, np.sum((a - b) ** 2), rtol=1e-6)
        scale = np.sqrt(np.sum(b * b) * np.sum((a - b) ** 2))
        np.testing.assert_allclose(dot, np.sum(b * (a - b)), rtol=0, atol=1e-6 * scale)


def test_the_sizes_of_many_tensors_at_once() -> None:
    many = [torch.randn(n) * n for n in (3, 65_536, 1, 65_537, 140_000)] + list(of_any_kind().values())
    for tensor, row in zip(many, measure_sizes(many), strict=True):
        np.testing.assert_array_equal(row, measure_sizes([tensor])[0])
