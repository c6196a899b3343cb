"""TensorBoard's event files: length-prefixed, checksummed records, encoded by hand because this runs at every step.

An event is a protobuf message (`tensorboard/compat/proto/event.proto`), and a scalar inside it is a tag and a float32.
Only the float changes from step to step, so the bytes in front of it are made once per tag.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_STRING

__all__ = [
    "EventFile",
    "ScalarEncoder",
    "clean_tag",
    "encode_event",
    "encode_histogram",
    "encode_restart",
    "encode_text_tensor",
]

_EVENT_WALL_TIME, _EVENT_STEP, _EVENT_FILE_VERSION, _EVENT_SUMMARY = b"\x09", b"\x10", b"\x1a", b"\x2a"
_EVENT_SESSION_START = b"\x3a\x02\x08\x01"
_SUMMARY_VALUE, _VALUE_SIMPLE = b"\x0a", b"\x15"
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def _load_checksum() -> tuple[Callable[[bytes], int], bool]:
    """CRC-32C of bytes, and whether it is a fast one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns when it has no C part; EventFile says it in our words
            import google_crc32c
        return google_crc32c.value, google_crc32c.implementation == "c"
    except Exception:  # not installed, or broken, whatever that raises
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c

        return crc32c, False


_crc32c, CHECKSUM_IS_FAST = _load_checksum()


class EventFile:
    """A new event file, one `write` per event: what was written survives the process and is seen by a live TensorBoard.

    Args:
        directory: Where to make the file; it must exist.

    Raises:
        OSError: The file cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        host = re.sub(r"[^\w.-]", "_", socket.gethostname()) or "localhost"
        name = f"events.out.tfevents.{int(time.time())}.{host}.{os.getpid()}.stabkit"
        self._size, self._lock = 0, threading.Lock()
        self._file = -1
        self.path = directory / name
        attempt = 0
        while self._file < 0:
            try:
                self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
            except FileExistsError:  # a second run of this process within a second
                attempt += 1
                self.path = directory / f"{name}.{attempt}"
        if not CHECKSUM_IS_FAST:
            with warnings.catch_warnings():
                warnings.simplefilter("always")  # also where the user turned warnings into errors
                warnings.warn(
                    "stabkit: google-crc32c has no compiled part here, so TensorBoard output costs about a millisecond "
                    "a step; `pip install --force-reinstall google-crc32c`, or watch(..., tensorboard=False)",
                    RuntimeWarning,
                    stacklevel=4,
                )
        self.write(_EVENT_WALL_TIME + struct.pack("<d", time.time()) + _field(_EVENT_FILE_VERSION, b"brain.Event:2"))

    def write(self, event: bytes) -> None:
        """Append one encoded event, from any thread. On OSError (a full disk) the file keeps its last whole record."""
        length = struct.pack("<Q", len(event))
        record = b"".join((length, _masked_checksum(length), event, _masked_checksum(event)))
        with self._lock:
            try:
                written = os.write(self._file, record)
                while written < len(record):
                    written += os.write(self._file, record[written:])
            except OSError:
                if self._file >= 0:
                    os.ftruncate(self._file, self._size)
                raise
            self._size += len(record)

    def close(self) -> None:
        """Close the file; a second call does nothing, a later write raises OSError."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)


class ScalarEncoder:
    """Encodes scalars for one file. TensorBoard wants a tag's description with its first value only.

    Args:
        describe: The description of a tag, in Markdown; "" for none.
    """

    def __init__(self, describe: Callable[[str], str]) -> None:
        self._describe = describe
        self._heads: dict[str, bytes] = {}

    def encode(self, tags: Sequence[str], values: Sequence[float]) -> bytes:
        """The summary of these scalars. TensorBoard holds float32: what is too large for it becomes infinite."""
        with np.errstate(over="ignore"):
            packed = np.array(values, dtype="<f4").tobytes()
        parts = [b""] * (2 * len(tags))
        parts[::2] = [self._heads.get(tag) or self._introduce(tag) for tag in tags]
        parts[1::2] = struct.unpack("4s" * len(tags), packed)
        return b"".join(parts)

    def _introduce(self, tag: str) -> bytes:
        self._heads[tag] = _head(Summary.Value(tag=tag))
        plugin = SummaryMetadata.PluginData(plugin_name="scalars")
        described = SummaryMetadata(summary_description=self._describe(tag), plugin_data=plugin)
        return _head(Summary.Value(tag=tag, metadata=described))


def encode_event(wall_time: float, step: int, summary: bytes) -> bytes:
    """An event with this encoded summary."""
    return _stamp(wall_time, step) + _field(_EVENT_SUMMARY, summary)


def encode_restart(wall_time: float, step: int) -> bytes:
    """An event that has readers forget what was written for this step and those after it."""
    return _stamp(wall_time, step) + _EVENT_SESSION_START


def encode_text_tensor(tag: str, content: bytes, plugin: str) -> bytes:
    """A summary with one string tensor that belongs to a TensorBoard plugin."""
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin))
    tensor = TensorProto(dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[content])
    summary = Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])
    return bytes(summary.SerializeToString())


def encode_histogram(tag: str, bins: NDArray[np.float64], description: str) -> bytes:
    """A summary with one histogram: [bins, 3] of left edge, right edge and count."""
    plugin = SummaryMetadata.PluginData(plugin_name="histograms")
    metadata = SummaryMetadata(summary_description=description, plugin_data=plugin)
    sizes = [TensorShapeProto.Dim(size=size) for size in bins.shape]
    content = np.ascontiguousarray(bins, dtype="<f8").tobytes()
    tensor = TensorProto(dtype=DT_DOUBLE, tensor_shape=TensorShapeProto(dim=sizes), tensor_content=content)
    return bytes(Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)]).SerializeToString())


def clean_tag(name: str) -> str:
    """A name as TensorBoard can show it: without control characters and what UTF-8 cannot hold, and never empty."""
    return _UNPRINTABLE.sub("_", name).strip("/ ") or "unnamed"


def _stamp(wall_time: float, step: int) -> bytes:
    return _EVENT_WALL_TIME + struct.pack("<d", wall_time) + _EVENT_STEP + _varint(step % 2**64)


def _head(value: Summary.Value) -> bytes:
    body = bytes(value.SerializeToString()) + _VALUE_SIMPLE
    return _SUMMARY_VALUE + _varint(len(body) + 4) + body


def _field(key: bytes, content: bytes) -> bytes:
    return key + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _masked_checksum(data: bytes) -> bytes:
    # Masked as TensorFlow does, because a checksum of data that contains checksums is weak.
    crc = _crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
