"""The log's layout on disk: file names, record types, the NumPy header, checksums. Knows nothing of who writes or reads.

    run/
      rank00000/
        run.json                    schema, versions, layouts: tensors, groups (written whole, replaced atomically)
        events.jsonl                marks, faults of the recorder, layout changes; one JSON object and its CRC a line
        scalars.jsonl               what the user logged
        optimizer0/
          steps-000000.npy          one record per attempted step
          tensors-000000.npy        one record per measured step: a row of columns per tensor

A segment is an ordinary .npy file of fixed-size records. While it is open its header claims the full capacity and the file is
shorter; on closing, the header is rewritten with the true count, and `numpy.load(path, mmap_mode="r")` opens it.
"""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import TENSOR_COLUMNS

__all__ = [
    "COLUMN_NAMES",
    "HEADER_BYTES",
    "SCHEMA_VERSION",
    "SEGMENT_STEPS",
    "checksum_line",
    "decode_line",
    "npy_header",
    "seal",
    "segment_name",
    "step_dtype",
    "tensor_dtype",
    "valid_records",
]

SCHEMA_VERSION = 1
SEGMENT_STEPS = 4096
HEADER_BYTES = 4096  # room for the dtype of any layout; a multiple of 64 as the .npy format asks
COLUMN_NAMES: tuple[str, ...] = tuple(column.name for column in TENSOR_COLUMNS)

_CRC_FIELD = ("crc", "<u4")


def step_dtype(groups: int) -> np.dtype[Any]:
    """The record of one attempted step of an optimizer with `groups` parameter groups."""
    group = [(name, "<f8") for name in ("lr", "weight_decay", "beta1", "beta2", "eps")]
    return np.dtype([
        ("step", "<i8"), ("attempt", "<i4"), ("layout", "<i4"), ("time", "<f8"), ("applied_steps", "<i8"),
        ("skipped", "<i4"), ("backward_count", "<i4"), ("loss_reduction", "<i4"), ("loss", "<f8"), ("loss_sum", "<f8"),
        ("grad_norm", "<f8"), ("grad_norm_used", "<f8"),
        ("clip_max_norm", "<f8"), ("clip_value", "<f8"), ("clip_coefficient", "<f8"), ("loss_scale", "<f8"),
        ("weight_norm", "<f8"), ("update_norm", "<f8"), ("group", group, (groups,)), _CRC_FIELD,
    ])  # fmt: skip


def tensor_dtype(tensors: int) -> np.dtype[Any]:
    """The record of one measured step: `values[tensors, columns]`, the columns in the order of `COLUMN_NAMES`."""
    fields = [("step", "<i8"), ("attempt", "<i4"), ("layout", "<i4"), ("values", "<f8", (tensors, len(COLUMN_NAMES)))]
    return np.dtype([*fields, _CRC_FIELD])


def segment_name(kind: str, index: int) -> str:
    """The file name of a segment; `kind` is "steps" or "tensors". Segments sort in the order of writing."""
    return f"{kind}-{index:06d}.npy"


def npy_header(dtype: np.dtype[Any], count: int) -> bytes:
    """A .npy header (format 2.0) of exactly `HEADER_BYTES`, whatever the count, so that it can be rewritten in place."""
    text = repr({"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)})
    magic = b"\x93NUMPY\x02\x00"
    length = HEADER_BYTES - len(magic) - 4
    return magic + length.to_bytes(4, "little") + text.encode("latin1").ljust(length - 1) + b"\n"


def seal(record: NDArray[Any]) -> bytes:
    """The bytes of one record (shape (1,)) with its CRC-32 filled in: over everything before the CRC."""
    raw = record.tobytes()[:-4]
    return raw + zlib.crc32(raw).to_bytes(4, "little")


def valid_records(records: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of these records carry the checksum of their own bytes."""
    size = records.dtype.itemsize
    raw = np.ascontiguousarray(records).tobytes()
    sums = (zlib.crc32(raw[start : start + size - 4]) for start in range(0, len(raw), size))
    return np.fromiter(sums, dtype=np.uint32, count=len(records)) == records["crc"]


def checksum_line(value: dict[str, Any]) -> bytes:
    """One line of a .jsonl file: the object with the CRC-32 of its text as the last member."""
    text = json.dumps(_encodable(value), separators=(",", ":"), sort_keys=True, allow_nan=False)
    return f'{{"crc":{zlib.crc32(text.encode())},"value":{text}}}\n'.encode()


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The object of a line made by `checksum_line`, or None where the line is damaged."""
    prefix, separator, rest = line.rstrip(b"\n").partition(b',"value":')
    if not (separator and prefix.startswith(b'{"crc":') and rest.endswith(b"}")):
        return None
    text = rest[:-1]
    if not prefix[7:].isdigit() or zlib.crc32(text) != int(prefix[7:]):
        return None
    value = json.loads(text)
    return value if isinstance(value, dict) else None


def _encodable(value: Any) -> Any:
    """JSON has no NaN: numbers that are not finite become the strings "nan", "inf" and "-inf"."""
    if isinstance(value, dict):
        return {str(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encodable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
