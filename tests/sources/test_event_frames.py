"""Event files of any make, read as TensorBoard's own reader reads them: that many events are read at once changes nothing."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabkit.sources.collect import Collected
from stabkit.sources.event_file import read

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
)
from tensorboard.compat.proto.event_pb2 import Event  # noqa: E402
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # noqa: E402
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # noqa: E402

FLOAT, DOUBLE, INT64, HALF = 1, 2, 9, 19
SINGLES = st.floats(width=32)
NAMES = st.sampled_from(["loss", "lossy", "a", "train/loss", "lr", "ünïcode", "x" * 200])


def packed(kind: int, number: float) -> TensorProto:
    """A scalar tensor as torch or TensorFlow write it."""
    if kind == FLOAT:
        return TensorProto(dtype=FLOAT, float_val=[number])
    if kind == DOUBLE:
        return TensorProto(dtype=DOUBLE, double_val=[number])
    return TensorProto(dtype=FLOAT, tensor_content=struct.pack("<f", number))


@st.composite
def values(draw: st.DrawFn) -> Any:
    tag, number, form = draw(NAMES), draw(SINGLES), draw(st.integers(0, 4))
    if form <= 1:
        return Summary.Value(tag=tag, simple_value=number)
    tensor = packed({2: FLOAT, 3: DOUBLE, 4: 0}[form], number)
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"), data_class=1)
    return Summary.Value(tag="new/" + tag, tensor=tensor, metadata=metadata)


@st.composite
def events(draw: st.DrawFn) -> Event:
    step = draw(st.sampled_from([0, 1, 127, 128, 300, 2**20, 2**40, 2**62]) | st.integers(0, 2**30))
    event = Event(wall_time=draw(st.floats(0, 2e9)), step=step)
    what = draw(st.integers(0, 9))
    if what == 0:
        event.file_version = "brain.Event:2"
    elif what == 1:
        event.summary.value.extend(draw(st.lists(values(), max_size=3)))
    else:
        event.summary.value.append(draw(values()))
    return event


def framed(record: bytes) -> bytes:
    """A record as it stands in the file."""

    def masked(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(record))
    return length + masked(length) + record + masked(record)


def ours(file: Path) -> tuple[dict[str, list[tuple[float, float, float]]], list[str]]:
    """(time, step, number) of each tag as stabkit reads them, and what it had to say."""
    into = Collected()
    read(file, into)
    if not into.rows:
        return {}, into.notes
    time, step = into.columns["wall_time"].values, into.columns["step"].values
    tags = {name: column for name, column in into.columns.items() if name not in ("step", "wall_time")}
    return {
        name: list(zip(time[c.where].tolist(), step[c.where].tolist(), c.values.tolist(), strict=True))
        for name, c in tags.items()
    }, into.notes


def theirs(file: Path) -> dict[str, list[tuple[float, float, float]]]:
    """The same as TensorBoard's own reader has it."""
    reader = accumulator.EventAccumulator(str(file), size_guidance=dict.fromkeys(accumulator.DEFAULT_SIZE_GUIDANCE, 0),
                                          purge_orphaned_data=False)  # fmt: skip
    reader.Reload()
    found = {tag: [(e.wall_time, float(e.step), e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    for tag in reader.Tags()["tensors"]:
        found[tag] = [(e.wall_time, float(e.step), _number(e.tensor_proto)) for e in reader.Tensors(tag)]
    return found


def _number(tensor: Any) -> float:
    held = [*tensor.float_val, *tensor.double_val]
    return float(held[0] if held else np.frombuffer(tensor.tensor_content, "<f4")[0])


def same(a: dict[str, list[tuple[float, float, float]]], b: dict[str, list[tuple[float, float, float]]]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(np.array(a[tag]), np.array(b[tag]), equal_nan=True) for tag in a)


def write(folder: Path, records: Sequence[Event]) -> Path:
    file = folder / "events.out.tfevents.1.host"
    file.write_bytes(b"".join(framed(event.SerializeToString()) for event in records))
    return file


@settings(max_examples=60, deadline=None)
@given(st.lists(events(), min_size=1, max_size=40), st.integers(1, 5))
def test_any_events_are_read_as_tensorboard_reads_them(
    tmp_path_factory: pytest.TempPathFactory, records: list[Event], times: int
) -> None:
    # A tag that comes twice in one event is kept once here and twice there.
    records = [r for r in records if len({v.tag for v in r.summary.value}) == len(r.summary.value)] * times
    file = write(tmp_path_factory.mktemp("events"), records)
    found, notes = ours(file)
    assert same(found, theirs(file)) and not notes


@settings(max_examples=60, deadline=None)
@given(st.lists(events(), min_size=3, max_size=20), st.data())
def test_a_record_with_a_wrong_checksum_is_lost_alone_and_what_is_cut_off_is_told(
    tmp_path_factory: pytest.TempPathFactory, records: list[Event], data: st.DataObject
) -> None:
    file = write(tmp_path_factory.mktemp("events"), records)
    content, broken = bytearray(file.read_bytes()), data.draw(st.integers(0, len(records) - 2))
    sizes = [len(framed(event.SerializeToString())) for event in records]
    at = sum(sizes[:broken]) + data.draw(st.integers(0, sizes[broken] - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(1, sizes[-1] - 1))
    file.write_bytes(bytes(content[:-cut]))
    found, notes = ours(file)
    whole = write(tmp_path_factory.mktemp("whole"), [r for i, r in enumerate(records[:-1]) if i != broken])
    assert same(found, ours(whole)[0])
    assert any("damaged in 1 place" in note for note in notes)


def test_fields_in_another_order_and_twice_are_read_as_protobuf_says(tmp_path: Path) -> None:
    usual = Event(wall_time=1.0, step=5)
    usual.summary.value.add(tag="loss", simple_value=2.0)
    raw = usual.SerializeToString()
    head, step, rest = raw[:9], raw[9:11], raw[11:]
    odd = [raw, head + rest + step, head + step + b"\x10\x07" + rest, rest + step + head, raw[:-1] + b"\xff" + rest]
    file = tmp_path / "events.out.tfevents.1.host"
    file.write_bytes(b"".join(framed(record) for record in odd))
    expected = []
    for record in odd:
        event = Event.FromString(record)
        expected.append((event.wall_time, float(event.step), event.summary.value[-1].simple_value))
    assert ours(file)[0] == {"loss": expected}
