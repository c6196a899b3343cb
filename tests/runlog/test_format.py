"""The files as other programs see them: closed segments are plain .npy files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stabkit.metric import TENSOR_COLUMNS
from stabkit.runlog.format import HEADER_BYTES, npy_header, parse_header, step_dtype, tensor_dtype, valid_records
from stabkit.runlog.lines import checksum_line, decode_line


@pytest.mark.parametrize("dtype", [step_dtype(0), step_dtype(3), tensor_dtype(0), tensor_dtype(10**6)])
@pytest.mark.parametrize("closed", [False, True])
def test_a_header_has_one_size_and_tells_what_it_was_made_of(dtype: np.dtype, closed: bool) -> None:
    header = npy_header(dtype, 4096, closed)
    parsed = parse_header(header)
    assert len(header) == HEADER_BYTES and parsed is not None
    assert parsed.dtype == dtype
    assert parsed.count == (4096 if closed else None)


def test_every_flipped_bit_of_a_header_is_seen() -> None:
    header = npy_header(tensor_dtype(52), 4096, True)
    for at in range(HEADER_BYTES):
        for bit in range(8):
            flipped = bytearray(header)
            flipped[at] ^= 1 << bit
            assert parse_header(bytes(flipped)) is None


def test_records_are_aligned() -> None:
    for dtype in (step_dtype(3), tensor_dtype(5)):
        assert dtype.itemsize % 8 == 0
        assert all(offset % 8 == 0 for field, offset, *_ in (dtype.fields or {}).values() if field.itemsize >= 8)


def test_numpy_alone_opens_a_closed_segment(write: Callable[..., Path]) -> None:
    folder = write(range(1, 11), segment_steps=4) / "rank00000" / "optimizer0"
    names = [f"steps-{i:06d}.npy" for i in range(3)]
    steps = [np.load(folder / name, mmap_mode="r") for name in names]
    assert np.concatenate([s["step"] for s in steps]).tolist() == list(range(1, 11))
    tensors = np.load(folder / "tensors-000001.npy", mmap_mode="r")
    assert tensors["tensors"].dtype.names == tuple(column.name for column in TENSOR_COLUMNS)
    assert tensors["tensors"]["grad_absmax"].tolist() == [[s, s + 0.1] for s in range(5, 9)]
    assert valid_records(np.asarray(tensors)).all()


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": float("nan"), "b": [float("inf"), -float("inf"), 1e-300]},
        {"crc": 1, "value": {"crc": 2}},
        {"text": 'quotes " newline \n and umlauts äöü \udcff'},
        {"numpy": np.float32(1.5), "count": np.int64(3), "path": Path("x")},
    ],
)
def test_a_line_survives_the_way_through_the_file(value: dict) -> None:
    line = checksum_line(value)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    decoded = decode_line(line)
    assert decoded is not None and set(decoded) == set(value)


def test_every_flipped_bit_of_a_line_is_seen() -> None:
    line = checksum_line({"event": "mark", "note": "lr halved", "step": 17})
    for at in range(len(line) - 1):
        for bit in range(8):
            flipped = bytearray(line)
            flipped[at] ^= 1 << bit
            assert decode_line(bytes(flipped)) is None


def test_numbers_that_json_lacks_are_spelled() -> None:
    assert decode_line(checksum_line({"a": float("nan"), "b": -float("inf"), "c": np.float64("inf")})) == {
        "a": "nan",
        "b": "-inf",
        "c": "inf",
    }
