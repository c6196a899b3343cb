"""The log's layout on disk: file names, record types, the NumPy header, checksums.

    run/
      rank00000/
        run.json                    schema, versions, layouts: tensors, groups (written whole, replaced atomically)
        events.jsonl                marks, faults of the recorder, layout changes; one JSON object and its CRC a line
        scalars.jsonl               what the user logged
        optimizer0/
          steps-000000.npy          one record per attempted step
          tensors-000000.npy        one record per measured step: a row of named columns per tensor

A segment is an ordinary .npy file of fixed-size records. While it is open its header claims the full capacity and the
file is shorter; on closing, the header is rewritten with the true count, and NumPy alone opens it: an array
[steps, tensors] is `numpy.load("tensors-000000.npy", mmap_mode="r")["tensors"]["grad_absmax"]`. The header ends in a
comment, which NumPy skips: the format's version, whether the segment is closed, and the CRC-32 of the header.

A log of every released version is kept in tests/runlog/logs and read by every test run; keep_log.py beside it keeps the next.
"""

from __future__ import annotations

import ast
import functools
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import TENSOR_COLUMNS

__all__ = [
    "COLUMN_NAMES",
    "CRC_BYTES",
    "HEADER_BYTES",
    "SCHEMA_VERSION",
    "SEGMENT_BYTES",
    "SEGMENT_STEPS",
    "Header",
    "Records",
    "npy_header",
    "parse_header",
    "seal",
    "segment_name",
    "step_dtype",
    "tensor_dtype",
    "valid_records",
]

Records = NDArray[Any]
"""A structured array of records."""

SCHEMA_VERSION = 1
SEGMENT_STEPS = 4096
SEGMENT_BYTES = 16 << 20  # of tensor records; but 64 of them fit always
HEADER_BYTES = 4096  # room for the dtype of any layout; a multiple of 64 as the .npy format asks
CRC_BYTES = 8  # a CRC-32 in eight bytes: every record and every number in it stays aligned
COLUMN_NAMES: tuple[str, ...] = tuple(column.name for column in TENSOR_COLUMNS)

_MAGIC = b"\x93NUMPY\x02\x00"
_CRC_FIELD = ("crc", "<u8")
_INDICES = {"step", "attempt", "layout", "crc"}
_COMMENT = re.compile(rb"# stabkit (\d{1,9}) (open|closed) crc $")


@functools.cache
def step_dtype(groups: int) -> np.dtype[Any]:
    """The record of one attempted step of an optimizer with `groups` parameter groups."""
    group = [(name, "<f8") for name in ("lr", "weight_decay", "beta1", "beta2", "eps")]
    return np.dtype([
        ("step", "<i8"), ("time", "<f8"), ("attempt", "<i4"), ("layout", "<i4"), ("applied_steps", "<i8"),
        ("skipped", "<i8"), ("backward_count", "<i8"), ("loss_reduction", "<i8"), ("loss", "<f8"), ("loss_sum", "<f8"),
        ("grad_norm", "<f8"), ("grad_norm_used", "<f8"),
        ("clip_max_norm", "<f8"), ("clip_value", "<f8"), ("clip_coefficient", "<f8"), ("loss_scale", "<f8"),
        ("clip_scale", "<f8"), ("clips_before_backward", "<i8"), ("clips_between_backwards", "<i8"),
        ("clips_after_backward", "<i8"), ("kept_gradients", "<i8"), ("dropped_backwards", "<i8"),
        ("undivided_losses", "<i8"), ("loss_kinds", "<i8"), ("step_outside_scaler", "<i8"), ("scaler_updates", "<i8"),
        ("scheduler_steps_before_backward", "<i8"), ("scheduler_steps_between_backwards", "<i8"),
        ("scheduler_steps_after_backward", "<i8"),
        ("weight_norm", "<f8"), ("update_norm", "<f8"), ("applied_update_norm", "<f8"), ("group", group, (groups,)), _CRC_FIELD,
    ])  # fmt: skip


@functools.cache
def tensor_dtype(tensors: int) -> np.dtype[Any]:
    """The record of one measured step: a row of named columns per tensor. `time` is that of the step's own record."""
    columns = [(name, "<f8") for name in COLUMN_NAMES]
    fields = [("step", "<i8"), ("time", "<f8"), ("attempt", "<i4"), ("layout", "<i4"), ("tensors", columns, (tensors,))]
    return np.dtype([*fields, _CRC_FIELD])


def segment_name(kind: str, index: int) -> str:
    """The file name of a segment; `kind` is "steps" or "tensors". Segments sort in the order of writing."""
    return f"{kind}-{index:06d}.npy"


@dataclass(frozen=True)
class Header:
    """What an undamaged header says.

    Attributes:
        schema: Version of the format.
        dtype: Type of the records; None where the version is not this one.
        count: Number of records of a closed segment, None while it is open.
    """

    schema: int
    dtype: np.dtype[Any] | None
    count: int | None


def npy_header(dtype: np.dtype[Any], count: int, closed: bool) -> bytes:
    """A .npy header (format 2.0) of exactly `HEADER_BYTES`, whatever the count, so that it can be rewritten in place.

    Args:
        dtype: Type of the records.
        count: Number of records, or the capacity of a segment that is still open.
        closed: Whether the count is final.
    """
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    comment = f"# stabkit {SCHEMA_VERSION} {'closed' if closed else 'open'} crc ".encode()
    room = HEADER_BYTES - len(_MAGIC) - 4 - len(comment) - 9
    text = repr(described).encode("latin1").ljust(room)
    if len(text) > room:
        raise ValueError(f"{len(dtype.fields or ())} fields do not fit into a header of {HEADER_BYTES} bytes")
    head = _MAGIC + (HEADER_BYTES - len(_MAGIC) - 4).to_bytes(4, "little") + text + comment
    return head + b"%08x\n" % zlib.crc32(head)


@functools.lru_cache(maxsize=1024)
def parse_header(header: bytes) -> Header | None:
    """What a header says, or None where a single bit of it is not as it was written.

    Remembered: a thinned run has hundreds of segments, and whoever looks at it reads them over and over.
    """
    head, checksum = header[:-9], header[-9:]
    comment = _COMMENT.search(head[-64:])
    if len(header) != HEADER_BYTES or comment is None or checksum != b"%08x\n" % zlib.crc32(head):
        return None
    schema = int(comment[1])
    if schema != SCHEMA_VERSION:
        return Header(schema, None, None)
    try:
        described = ast.literal_eval(header[len(_MAGIC) + 4 :].decode("latin1"))
        count = int(described["shape"][0]) if comment[2] == b"closed" else None
        dtype = np.lib.format.descr_to_dtype(described["descr"])
    except (ValueError, TypeError, LookupError, SyntaxError, OverflowError, MemoryError, RecursionError):
        return None  # whoever wrote this knew how to make a checksum: it is not ours
    return Header(schema, dtype, count) if _describes_records(dtype) else None


def _describes_records(dtype: np.dtype[Any]) -> bool:
    """Whether this is a record of ours, of whatever columns: numbers, a row of them per group or tensor, and a checksum."""
    own: Mapping[str, Any] = dtype.fields or {}
    repeated = [own[name][0] for name in ("group", "tensors") if name in own]
    if len(repeated) != 1 or repeated[0].subdtype is None or len(repeated[0].shape) != 1:
        return False
    columns = (repeated[0].base.fields or {}).values()
    plain = [kind for name, (kind, *_) in own.items() if name not in ("group", "tensors")] + [kind for kind, *_ in columns]
    indices = all(own[name][0].kind in "iu" for name in _INDICES if name in own)
    sealed = (dtype.names or ())[-1:] == ("crc",)
    return set(own) >= _INDICES and indices and sealed and all(kind.kind in "iuf" for kind in plain)


def seal(record: Records) -> bytes:
    """The bytes of one record (shape (1,)) with its CRC-32 filled in: over everything before the CRC."""
    raw = record.tobytes()[:-CRC_BYTES]
    return raw + zlib.crc32(raw).to_bytes(CRC_BYTES, "little")


def valid_records(records: Records) -> NDArray[np.bool_]:
    """Which of these records [n] carry the checksum of their own bytes. Copies nothing."""
    if not len(records):
        return np.empty(0, np.bool_)
    size = records.dtype.itemsize
    raw = memoryview(records.view(np.uint8))  # type: ignore[arg-type]
    sums = (zlib.crc32(raw[start : start + size - CRC_BYTES]) for start in range(0, len(raw), size))
    good: NDArray[np.bool_] = np.fromiter(sums, dtype=np.uint64, count=len(records)) == records["crc"]
    return good
