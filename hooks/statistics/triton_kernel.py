# mypy: ignore-errors
# What `triton.jit` compiles is not Python: names stand for tensors of the device, and types are found by Triton.
"""The sums of all tensors of a step from one read, as Triton kernels: over chunks of tensors, and one that merges the chunks.

A program of the first takes one chunk of one tensor, which it finds through a table of addresses, and leaves a row of partial
sums. A program of the second adds up the rows of one tensor, always in the same order. There are no atomics: the same tensors
give the same bits.

How accuracy and speed are had together is as in `_sums.h`. Float64 costs a data centre's GPU twice the time and any other the
sixtyfold, so a chunk is first summed up in float32, each thread over few elements, then in a tree. What came out tells whether
anything can have been lost (`trusted`): a sum between 1e-25 and 1e30 holds no square that mattered and vanished, NaN and Inf
fail every comparison. If so, and for the elements at a tensor's end that fill no tile, the chunk is walked again in float64,
with care for values that are not finite; few chunks are, and what they need is in the cache.

Columns of the partial sums are BEFORE_COLUMNS, then AFTER_COLUMNS, v not yet corrected for its bias. Of the table's rows see
`device_table`.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["address", "before_chunks", "eps_limit", "merge_chunks", "rates", "within"]


@triton.jit
def address(table, at: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """One pointer of a row of the table, and whether there is a tensor."""
    found = tl.load(table + at)
    pointer = found.to(tl.pointer_type(KIND))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer, found != 0


@triton.jit
def rates(table, numbers):
    """What the step was taken with, float64: lr / bias1, share of the weights that decays, bias2, count.

    Count and rate are read from where the optimizer keeps them, if that is the device.
    """
    count_at = tl.load(table + 6)
    count = tl.load(count_at.to(tl.pointer_type(tl.float32)), mask=count_at != 0, other=0.0).to(tl.float64)
    count = tl.where(count_at != 0, count, tl.load(numbers + 13))
    rate_at = tl.load(table + 7)
    rate = tl.load(rate_at.to(tl.pointer_type(tl.float32)), mask=rate_at != 0, other=0.0).to(tl.float64)
    rate = tl.where(rate_at != 0, rate, tl.load(numbers + 12))
    applied = count > 0
    bias1 = tl.where(applied, 1.0 - tl.exp(count * tl.load(numbers + 14)), 0.0)
    bias2 = tl.where(applied, 1.0 - tl.exp(count * tl.load(numbers + 15)), 0.0)
    step = tl.where(bias1 != 0, rate / tl.where(bias1 != 0, bias1, 1.0), 0.0)
    return step, rate * tl.load(numbers + 17), bias2, count


@triton.jit
def eps_limit(eps, bias):
    """The first float32 whose sqrt(v / bias) is not below 10 eps, found with the very test it replaces."""
    near = (100.0 * eps * eps * bias).to(tl.float32).to(tl.int32, bitcast=True)
    lowest = tl.maximum(near - 4, 0)
    candidates = (lowest + tl.arange(0, 8)).to(tl.float32, bitcast=True).to(tl.float64)
    below = tl.sqrt(candidates / bias) < 10.0 * eps
    limit = (lowest + tl.sum(below.to(tl.int32), axis=0)).to(tl.float32, bitcast=True)
    return tl.where(bias > 0, limit, 0.0)


@triton.jit
def within(total, sizes):
    """Whether a float32 sum of squares has lost nothing, given a sum of sizes: 0 where there is nothing to lose."""
    return ((total > 1e-25) | (sizes == 0)) & (total < 1e30)


@triton.jit
def before_chunks(
    table, numbers, chunks, partials,
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, T: tl.constexpr, V: tl.constexpr, ROW: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Σp², Σgm, Σm² of one chunk.

    Args:
        table: int64 [tensors, ROW].
        numbers: The same memory as float64.
        chunks: int32 [chunks, 2]: the tensor, and which of its chunks.
        partials: float64 [chunks, COLUMNS].
        P: Type of the parameters; G and M those of gradients and moments.
        ALIGNED: Whether all addresses are multiples of 16 bytes.
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
    sign = tl.load(numbers + 19)

    pp = tl.zeros([T], tl.float32)
    gg = tl.zeros([T], tl.float32)
    mm = tl.zeros([T], tl.float32)
    gm = tl.zeros([T], tl.float32)
    p_any = tl.zeros([T], tl.float32)
    g_any = tl.zeros([T], tl.float32)
    m_any = tl.zeros([T], tl.float32)
    inner = tl.arange(0, T)[:, None] * V + tl.arange(0, V)[None, :]
    full = start + (end - start) // (T * V) * (T * V)
    for o in range(start, full, T * V):
        k = o + inner
        p = tl.load(p_at + k).to(tl.float32)
        g = tl.load(g_at + k, mask=has_g, other=0.0).to(tl.float32)
        m = tl.load(m_at + k, mask=has_m, other=0.0).to(tl.float32)
        pp += tl.sum(p * p, axis=1)
        gg += tl.sum(g * g, axis=1)
        mm += tl.sum(m * m, axis=1)
        gm += tl.sum(g * m, axis=1)
        p_any += tl.sum(tl.abs(p), axis=1)
        g_any += tl.sum(tl.abs(g), axis=1)
        m_any += tl.sum(tl.abs(m), axis=1)
    pp = tl.sum(pp, axis=0)
    gg = tl.sum(gg, axis=0)
    mm = tl.sum(mm, axis=0)
    trusted = within(pp, tl.sum(p_any, axis=0)) & within(gg, tl.sum(g_any, axis=0)) & within(mm, tl.sum(m_any, axis=0))
    weight = tl.where(trusted, pp, 0.0).to(tl.float64)
    dot = tl.where(trusted, tl.sum(gm, axis=0), 0.0).to(tl.float64)
    momentum = tl.where(trusted, mm, 0.0).to(tl.float64)

    again = tl.where(trusted, full, start)
    if again < end:
        pp2 = tl.zeros([T], tl.float64)
        gm2 = tl.zeros([T], tl.float64)
        mm2 = tl.zeros([T], tl.float64)
        for o in range(again, end, T):
            k = o + tl.arange(0, T)
            here = k < end
            p2 = tl.load(p_at + k, mask=here, other=0.0).to(tl.float64)
            g2 = tl.load(g_at + k, mask=here & has_g, other=0.0).to(tl.float64)
            m2 = tl.load(m_at + k, mask=here & has_m, other=0.0).to(tl.float64)
            pp2 += p2 * p2
            gm2 += g2 * m2
            mm2 += m2 * m2
        weight += tl.sum(pp2, axis=0)
        dot += tl.sum(gm2, axis=0)
        momentum += tl.sum(mm2, axis=0)

    out = partials + place.to(tl.int64) * COLUMNS
    tl.store(out, weight)
    tl.store(out + 1, sign * dot)
    tl.store(out + 2, momentum)


@triton.jit
def merge_chunks(
    table, numbers, partials, out,
    START: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr,
    AT_ONCE: tl.constexpr, LANES: tl.constexpr, ROW: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The columns of one tensor from those of its chunks, NaN where they need a count of steps that is 0.

    Args:
        table: int64 [tensors, ROW].
        numbers: The same memory as float64.
        partials: float64 [chunks, COLUMNS].
        out: float64 [tensors, WIDTH].
        START: The first of the columns wanted.
        WIDTH: How many are wanted.
        STEP: Whether the first three were worked back from what the step left.
        AT_ONCE: Chunks that are read at a time.
        LANES: At least COLUMNS, a power of two.
        ROW: Numbers in a row of the table.
        COLUMNS: Numbers in a row of the partial sums.
    """
    tensor = tl.program_id(0).to(tl.int64)
    table += tensor * ROW
    numbers += tensor * ROW
    first = tl.load(table + 9)
    many = tl.load(table + 10)
    _, _, bias2, count = rates(table, numbers)
    column = START + tl.arange(0, LANES)
    wanted = column < START + WIDTH
    largest = (column == 4) | (column == 10) | (column == 13) | (column == 16)
    least = column == 9
    nothing = tl.where(largest, float("-inf"), tl.where(least, float("inf"), 0.0)).to(tl.float64)
    merged = tl.zeros([AT_ONCE, LANES], tl.float64) + nothing[None, :]
    for o in range(0, many, AT_ONCE):
        k = o + tl.arange(0, AT_ONCE)
        at = (first + k)[:, None] * COLUMNS + column[None, :]
        read = (k < many)[:, None] & wanted[None, :]
        x = tl.load(partials + at, mask=read, other=0.0)
        x = tl.where(read, x, nothing[None, :])
        extreme = tl.where(largest[None, :], tl.maximum(merged, x), tl.minimum(merged, x))
        merged = tl.where(largest[None, :] | least[None, :], extreme, merged + x)
    value = tl.where(largest, tl.max(merged, axis=0), tl.where(least, tl.min(merged, axis=0), tl.sum(merged, axis=0)))

    of_second = (column == 8) | (column == 9) | (column == 10)
    value = tl.where(of_second, value / bias2, value)
    corrected = of_second | (column == 11) | (column == 12) | ((column >= 15) & (column <= 17))
    if STEP:
        corrected = corrected | (column < 3)
    told = tl.where(corrected, bias2 > 0, True)
    told = told & tl.where((column == 9) | (column == 10), tl.abs(value) < float("inf"), True)  # or no element was finite
    if STEP:
        told = told & tl.where((column == 1) | (column == 2), count > 1, True)  # or there was no moment before
    tl.store(out + tensor * WIDTH + column - START, tl.where(told, value, float("nan")), mask=wanted)
