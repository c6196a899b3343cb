# mypy: ignore-errors
# What `triton.jit` compiles is not Python: names stand for tensors of the device, and types are found by Triton.
"""The Triton kernel that sums up all that is to be known after a step, from one read; see `triton_kernel`."""

from __future__ import annotations

import triton
import triton.language as tl

from stabkit.hooks.statistics.triton_kernel import address, eps_limit, rates, within

__all__ = ["after_chunks"]


@triton.jit
def after_chunks(
    table, numbers, chunks, partials,
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, S: tl.constexpr, ALIGNED: tl.constexpr, STEP: tl.constexpr,
    CHUNK: tl.constexpr, T: tl.constexpr, V: tl.constexpr, ROW: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """AFTER_COLUMNS of one chunk, and with STEP also BEFORE_COLUMNS, worked back from what the step left.

    Args:
        table: int64 [tensors, ROW].
        numbers: The same memory as float64.
        chunks: int32 [chunks, 2]: the tensor, and which of its chunks.
        partials: float64 [chunks, COLUMNS].
        P: Type of the parameters; G, M and S those of gradients, first and second moments.
        ALIGNED: Whether all addresses are multiples of 16 bytes.
        STEP: Whether BEFORE_COLUMNS are wanted.
        CHUNK: Elements of a chunk, a multiple of T * V.
        T: Threads of a program.
        V: Elements that a thread reads at a time.
        ROW: Numbers in a row of the table.
        COLUMNS: Numbers in a row of the partial sums.
    """
    place = tl.program_id(0)
    row = tl.load(chunks + 2 * place).to(tl.int64) * ROW
    start = tl.load(chunks + 2 * place + 1).to(tl.int64) * CHUNK
    table += row
    numbers += row
    end = tl.minimum(start + CHUNK, tl.load(table + 8))
    p_at, _ = address(table, 0, P, ALIGNED)
    g_at, has_g = address(table, 1, G, ALIGNED)
    m_at, has_m = address(table, 2, M, ALIGNED)
    v_at, has_v = address(table, 3, S, ALIGNED)
    top_at, has_top = address(table, 4, S, ALIGNED)
    b_at, has_b = address(table, 5, P, ALIGNED)
    step2, decay2, bias2, _ = rates(table, numbers)
    eps2 = tl.load(numbers + 16)
    coupled2 = tl.load(numbers + 18)
    sign2 = tl.load(numbers + 19)
    beta2 = tl.load(numbers + 20)
    limit = eps_limit(eps2, bias2)

    # ---- in float32 ------------------------------------------------------------------------------------------------
    step = step2.to(tl.float32)
    decay = decay2.to(tl.float32)
    eps = eps2.to(tl.float32)
    root = tl.sqrt(1.0 / bias2).to(tl.float32)
    grow = (1.0 / (1.0 - decay2)).to(tl.float32)
    coupled = coupled2.to(tl.float32)
    sign = sign2.to(tl.float32)
    fresh = (1.0 - beta2).to(tl.float32)
    back = (1.0 / beta2).to(tl.float32)
    gg = tl.zeros([T], tl.float32)
    zeros = tl.zeros([T], tl.float32)
    g_max = tl.zeros([T], tl.float32)
    mm = tl.zeros([T], tl.float32)
    m_any = tl.zeros([T], tl.float32)
    vv = tl.zeros([T], tl.float32)
    v_max = tl.full([T], float("-inf"), tl.float32)
    v_min = tl.full([T], float("inf"), tl.float32)
    rms = tl.zeros([T], tl.float32)
    small = tl.zeros([T], tl.float32)
    p_max = tl.zeros([T], tl.float32)
    uu = tl.zeros([T], tl.float32)
    u_max = tl.zeros([T], tl.float32)
    ww = tl.zeros([T], tl.float32)
    wu = tl.zeros([T], tl.float32)
    moved = tl.zeros([T], tl.float32)
    divisor = tl.zeros([T], tl.float32)
    go = tl.zeros([T], tl.float32)
    oo = tl.zeros([T], tl.float32)
    o_any = tl.zeros([T], tl.float32)
    inner = tl.arange(0, T)[:, None] * V + tl.arange(0, V)[None, :]
    full = start + (end - start) // (T * V) * (T * V)
    for o in range(start, full, T * V):
        k = o + inner
        p = tl.load(p_at + k).to(tl.float32)
        g = tl.load(g_at + k, mask=has_g, other=0.0).to(tl.float32)
        m = tl.load(m_at + k, mask=has_m, other=0.0).to(tl.float32)
        v = tl.load(v_at + k, mask=has_v, other=0.0).to(tl.float32)
        top = tl.load(top_at + k, mask=has_top, other=0.0).to(tl.float32)
        b = tl.load(b_at + k, mask=has_b, other=0.0).to(tl.float32)
        d = tl.sqrt(tl.where(has_top, top, v)) * root
        total = d + eps
        floor = tl.maximum(d, eps)
        inverse = 1.0 / (total * floor)  # one quotient serves both
        adam = step * m * (floor * inverse)
        r = g * (total * inverse)
        w = tl.where(has_b, b, (p + adam) * grow)
        u = adam + decay * w
        by = p - b  # p itself where there is no copy: then its sum of squares only tells whether p is finite
        gg += tl.sum(g * g, axis=1)
        zeros += tl.sum(tl.where(g == 0, 1.0, 0.0), axis=1)
        g_max = tl.maximum(g_max, tl.max(tl.abs(g), axis=1))
        mm += tl.sum(m * m, axis=1)
        m_any += tl.sum(tl.abs(m), axis=1)
        vv += tl.sum(v, axis=1)
        v_max = tl.maximum(v_max, tl.max(v, axis=1))
        v_min = tl.minimum(v_min, tl.min(v, axis=1))
        rms += tl.sum(r * r, axis=1)
        small += tl.sum(tl.where((v > 0) & (v < limit), 1.0, 0.0), axis=1)
        p_max = tl.maximum(p_max, tl.max(tl.abs(p), axis=1))
        uu += tl.sum(u * u, axis=1)
        u_max = tl.maximum(u_max, tl.max(tl.abs(u), axis=1))
        ww += tl.sum(w * w, axis=1)
        wu += tl.sum(w * u, axis=1)
        moved += tl.sum(by * by, axis=1)
        divisor += tl.sum(total * floor, axis=1)
        if STEP:
            old = (m - fresh * (sign * g + coupled * w)) * back
            go += tl.sum(g * old, axis=1)
            oo += tl.sum(old * old, axis=1)
            o_any += tl.sum(tl.abs(old), axis=1)

    gg = tl.sum(gg, axis=0)
    g_top = tl.max(g_max, axis=0)
    mm = tl.sum(mm, axis=0)
    m_any = tl.sum(m_any, axis=0)
    vv = tl.sum(vv, axis=0)
    v_low = tl.min(v_min, axis=0)
    rms = tl.sum(rms, axis=0)
    uu = tl.sum(uu, axis=0)
    ww = tl.sum(ww, axis=0)
    moved = tl.sum(moved, axis=0)
    # The divisor, were it to overflow, would silently make an update 0. A sum that ought to be 0 must be.
    trusted = within(gg, g_top) & within(mm, m_any) & (vv < 1e30) & (v_low >= 0)
    trusted = trusted & within(rms, g_top) & (tl.sum(divisor, axis=0) < 1e34)
    still = ((step2 == 0) | (m_any == 0)) & (decay2 == 0)
    trusted = trusted & ((uu > 1e-25) | still) & (uu < 1e30) & (ww > 1e-25) & (ww < 1e30)
    trusted = trusted & ((step2 == 0) | (step2 > 1e-25)) & (moved < 1e30) & ((moved > 1e-25) | (has_b == 0))
    # Without a snapshot an update larger than the weights would cancel in p + adam.
    trusted = trusted & (has_b | (uu <= ww)) & (full > start)
    if STEP:
        oo = tl.sum(oo, axis=0)
        go = tl.sum(go, axis=0)
        trusted = trusted & within(oo, tl.sum(o_any, axis=0))
    else:
        oo = 0.0
        go = 0.0

    weight = tl.where(trusted, ww, 0.0).to(tl.float64)
    old_dot = tl.where(trusted, go, 0.0).to(tl.float64)
    old_sumsq = tl.where(trusted, oo, 0.0).to(tl.float64)
    g_sumsq = tl.where(trusted, gg, 0.0).to(tl.float64)
    g_absmax = tl.where(trusted, g_top, 0.0).to(tl.float64)
    g_zeros = tl.where(trusted, tl.sum(zeros, axis=0), 0.0).to(tl.float64)
    m_sumsq = tl.where(trusted, mm, 0.0).to(tl.float64)
    v_sum = tl.where(trusted, vv, 0.0).to(tl.float64)
    v_least = tl.where(trusted, v_low, float("inf")).to(tl.float64)
    v_most = tl.where(trusted, tl.max(v_max, axis=0), float("-inf")).to(tl.float64)
    rms_sum = tl.where(trusted, rms, 0.0).to(tl.float64)
    eps_count = tl.where(trusted, tl.sum(small, axis=0), 0.0).to(tl.float64)
    p_absmax = tl.where(trusted, tl.max(p_max, axis=0), 0.0).to(tl.float64)
    u_sumsq = tl.where(trusted, uu, 0.0).to(tl.float64)
    u_absmax = tl.where(trusted, tl.max(u_max, axis=0), 0.0).to(tl.float64)
    dot = tl.where(trusted, tl.sum(wu, axis=0), 0.0).to(tl.float64)
    applied = tl.where(trusted, moved, 0.0).to(tl.float64)
    g_bad = tl.zeros([], tl.float64)
    p_bad = tl.zeros([], tl.float64)

    # ---- in float64, where that was not enough ------------------------------------------------------------------------
    again = tl.where(trusted, full, start)
    if again < end:
        weight2 = tl.zeros([T], tl.float64)
        old_dot2 = tl.zeros([T], tl.float64)
        old_sumsq2 = tl.zeros([T], tl.float64)
        g_sumsq2 = tl.zeros([T], tl.float64)
        g_absmax2 = tl.zeros([T], tl.float64)
        g_bad2 = tl.zeros([T], tl.int32)
        g_zeros2 = tl.zeros([T], tl.int32)
        m_sumsq2 = tl.zeros([T], tl.float64)
        v_sum2 = tl.zeros([T], tl.float64)
        v_least2 = tl.full([T], float("inf"), tl.float64)
        v_most2 = tl.full([T], float("-inf"), tl.float64)
        rms_sum2 = tl.zeros([T], tl.float64)
        eps_count2 = tl.zeros([T], tl.int32)
        p_absmax2 = tl.zeros([T], tl.float64)
        p_bad2 = tl.zeros([T], tl.int32)
        u_sumsq2 = tl.zeros([T], tl.float64)
        u_absmax2 = tl.zeros([T], tl.float64)
        dot2 = tl.zeros([T], tl.float64)
        applied2 = tl.zeros([T], tl.float64)
        for o in range(again, end, T):
            k = o + tl.arange(0, T)
            here = k < end
            p2 = tl.load(p_at + k, mask=here, other=0.0).to(tl.float64)
            g2 = tl.load(g_at + k, mask=here & has_g, other=0.0).to(tl.float64)
            m2 = tl.load(m_at + k, mask=here & has_m, other=0.0).to(tl.float64)
            v2 = tl.load(v_at + k, mask=here & has_v, other=0.0).to(tl.float64)
            top2 = tl.load(top_at + k, mask=here & has_top, other=0.0).to(tl.float64)
            b2 = tl.load(b_at + k, mask=here & has_b, other=0.0).to(tl.float64)
            d2 = tl.where(has_top, top2, v2) / bias2
            floor2 = tl.where(d2 < eps2 * eps2, eps2 * eps2, d2)  # a NaN passes through
            adam2 = step2 * m2 / (tl.sqrt(d2) + eps2)
            w2 = tl.where(has_b, b2, (p2 + adam2) / (1.0 - decay2))
            u2 = adam2 + decay2 * w2
            by2 = tl.where(has_b, p2 - b2, 0.0)
            g_size = tl.abs(g2)
            p_size = tl.abs(p2)
            u_size = tl.abs(u2)
            g_sumsq2 += g2 * g2
            g_absmax2 = tl.maximum(g_absmax2, tl.where(g_size < float("inf"), g_size, 0.0))
            g_bad2 += tl.where(g_size < float("inf"), 0, 1)
            g_zeros2 += tl.where(here & (g2 == 0), 1, 0)
            m_sumsq2 += m2 * m2
            v_sum2 += v2
            bounded = here & (tl.abs(v2) < float("inf"))
            v_least2 = tl.minimum(v_least2, tl.where(bounded, v2, float("inf")))
            v_most2 = tl.maximum(v_most2, tl.where(bounded, v2, float("-inf")))
            rms_sum2 += tl.where(here, g2 * g2 / floor2, 0.0)
            eps_count2 += tl.where((v2 > 0) & (v2 < limit), 1, 0)
            p_absmax2 = tl.maximum(p_absmax2, tl.where(p_size < float("inf"), p_size, 0.0))
            p_bad2 += tl.where(p_size < float("inf"), 0, 1)
            u_sumsq2 += tl.where(here, u2 * u2, 0.0)
            u_absmax2 = tl.maximum(u_absmax2, tl.where(here & (u_size < float("inf")), u_size, 0.0))
            weight2 += tl.where(here, w2 * w2, 0.0)
            dot2 += tl.where(here, w2 * u2, 0.0)
            applied2 += by2 * by2
            if STEP:
                old2 = (m2 - (1.0 - beta2) * (sign2 * g2 + coupled2 * w2)) / beta2
                old_dot2 += tl.where(here, g2 * old2, 0.0)
                old_sumsq2 += tl.where(here, old2 * old2, 0.0)
        weight += tl.sum(weight2, axis=0)
        old_dot += tl.sum(old_dot2, axis=0)
        old_sumsq += tl.sum(old_sumsq2, axis=0)
        g_sumsq += tl.sum(g_sumsq2, axis=0)
        g_absmax = tl.maximum(g_absmax, tl.max(g_absmax2, axis=0))
        g_bad += tl.sum(g_bad2, axis=0).to(tl.float64)
        g_zeros += tl.sum(g_zeros2, axis=0).to(tl.float64)
        m_sumsq += tl.sum(m_sumsq2, axis=0)
        v_sum += tl.sum(v_sum2, axis=0)
        v_least = tl.minimum(v_least, tl.min(v_least2, axis=0))
        v_most = tl.maximum(v_most, tl.max(v_most2, axis=0))
        rms_sum += tl.sum(rms_sum2, axis=0)
        eps_count += tl.sum(eps_count2, axis=0).to(tl.float64)
        p_absmax = tl.maximum(p_absmax, tl.max(p_absmax2, axis=0))
        p_bad += tl.sum(p_bad2, axis=0).to(tl.float64)
        u_sumsq += tl.sum(u_sumsq2, axis=0)
        u_absmax = tl.maximum(u_absmax, tl.max(u_absmax2, axis=0))
        dot += tl.sum(dot2, axis=0)
        applied += tl.sum(applied2, axis=0)

    out = partials + place.to(tl.int64) * COLUMNS
    tl.store(out, weight)
    tl.store(out + 1, sign2 * old_dot)
    tl.store(out + 2, old_sumsq)
    tl.store(out + 3, g_sumsq)
    tl.store(out + 4, g_absmax)
    tl.store(out + 5, g_bad)
    tl.store(out + 6, g_zeros)
    tl.store(out + 7, m_sumsq)
    tl.store(out + 8, v_sum)
    tl.store(out + 9, v_least)
    tl.store(out + 10, v_most)
    tl.store(out + 11, rms_sum)
    tl.store(out + 12, eps_count)
    tl.store(out + 13, p_absmax)
    tl.store(out + 14, p_bad)
    tl.store(out + 15, u_sumsq)
    tl.store(out + 16, u_absmax)
    tl.store(out + 17, -dot)
    tl.store(out + 18, applied)
