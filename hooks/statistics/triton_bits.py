# mypy: ignore-errors
# What `triton.jit` compiles is not Python: names stand for tensors of the device, and types are found by Triton.
"""Two Triton kernels that keep some elements of many weights, and count afterwards those whose bits have not changed.

One program for each tensor. Of the table's rows see `device_table`.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["compare_elements", "keep_elements"]


@triton.jit
def keep_elements(
    table, kept, BITS: tl.constexpr, ELEMENTS: tl.constexpr, AT_ONCE: tl.constexpr, ROW: tl.constexpr
):  # fmt: skip
    """Copies the bits of about ELEMENTS elements, evenly spread, of each tensor.

    Args:
        table: int64 [tensors, ROW].
        kept: Integers [tensors, 2 * ELEMENTS] of the tensors' width.
        BITS: The type of those.
        ELEMENTS: How many are wanted.
        AT_ONCE: Elements that a program reads at a time.
        ROW: Numbers in a row of the table.
    """
    tensor = tl.program_id(0).to(tl.int64)
    p_at = tl.load(table + tensor * ROW).to(tl.pointer_type(BITS))
    size = tl.load(table + tensor * ROW + 8)
    stride = tl.maximum(size // ELEMENTS, 1)
    many = (size + stride - 1) // stride
    for o in range(0, many, AT_ONCE):
        k = o + tl.arange(0, AT_ONCE)
        here = k < many
        tl.store(kept + tensor * 2 * ELEMENTS + k, tl.load(p_at + k * stride, mask=here, other=0), mask=here)


@triton.jit
def compare_elements(
    table, kept, out, BITS: tl.constexpr, G: tl.constexpr, ELEMENTS: tl.constexpr, AT_ONCE: tl.constexpr, ROW: tl.constexpr
):  # fmt: skip
    """Counts the kept elements that had a gradient, and those of them whose bits are the same still.

    Args:
        table: int64 [tensors, ROW].
        kept: As `keep_elements` left them.
        out: float64 [tensors, 2]: how many are unchanged, of how many.
        BITS: The type of what is kept.
        G: That of the gradients.
        ELEMENTS: How many were wanted.
        AT_ONCE: Elements that a program reads at a time.
        ROW: Numbers in a row of the table.
    """
    tensor = tl.program_id(0).to(tl.int64)
    p_at = tl.load(table + tensor * ROW).to(tl.pointer_type(BITS))
    g_found = tl.load(table + tensor * ROW + 1)
    g_at = g_found.to(tl.pointer_type(G))
    size = tl.load(table + tensor * ROW + 8)
    stride = tl.maximum(size // ELEMENTS, 1)
    many = (size + stride - 1) // stride
    same = tl.zeros([AT_ONCE], tl.int32)
    moved = tl.zeros([AT_ONCE], tl.int32)
    for o in range(0, many, AT_ONCE):
        k = o + tl.arange(0, AT_ONCE)
        here = k < many
        now = tl.load(p_at + k * stride, mask=here, other=0)
        before = tl.load(kept + tensor * 2 * ELEMENTS + k, mask=here, other=0)
        g = tl.load(g_at + k * stride, mask=here & (g_found != 0), other=0.0).to(tl.float32)
        drawn = here & (g != 0)
        moved += tl.where(drawn, 1, 0)
        same += tl.where(drawn & (now == before), 1, 0)
    tl.store(out + tensor * 2, tl.sum(same, axis=0).to(tl.float64))
    tl.store(out + tensor * 2 + 1, tl.sum(moved, axis=0).to(tl.float64))
