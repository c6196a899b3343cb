"""The event file: framing, checksums and encoding, by TensorBoard's own readers and protobuf."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dashboard_log import LAYOUT, decoded, measured, raw_events, record, scalars
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c
from tensorboard.plugins.custom_scalar import metadata

from stabkit.dashboard import events
from stabkit.dashboard.layout import describe
from stabkit.dashboard.writer import DashboardWriter


def test_one_event_per_step_after_version_and_layout(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.layout(0, LAYOUT)
    for step in (1, 2, 3):
        writer.step(0, record(step, tensors=measured()))
    version, page, start, *steps = decoded(tmp_path)  # no flush, no close: a live reader sees everything
    assert version.file_version.startswith("brain.Event:")
    assert page.summary.value[0].tag == metadata.CONFIG_SUMMARY_TAG
    assert start.session_log.status == start.session_log.START
    assert [(e.step, e.wall_time) for e in steps] == [(s, 1e9 + s) for s in (1, 2, 3)]
    assert {len(e.summary.value) for e in steps} == {2 + 3 * 2}
    assert [bool(e.summary.value[0].metadata.summary_description) for e in steps] == [True, False, False]


def test_file_name(writer: DashboardWriter, tmp_path: Path) -> None:
    again = DashboardWriter(tmp_path)  # within the same second
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 2
    assert all(n.startswith("events.out.tfevents.") and f".{os.getpid()}.stabkit" in n for n in names)
    again.close()


@pytest.mark.parametrize("place", [3, 9, 40, -1])
def test_reader_rejects_a_flipped_byte(writer: DashboardWriter, tmp_path: Path, place: int) -> None:
    writer.scalars(1, {"a": 1})
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    assert len(raw_events(tmp_path)) == 2
    damaged = bytearray(whole)
    damaged[place] ^= 0x10
    path.write_bytes(damaged)
    try:
        assert len(raw_events(tmp_path)) < 2
    except errors.DataLossError:
        pass


@given(st.binary(max_size=300))
def test_checksum_is_tensorboards(data: bytes) -> None:
    assert events._crc32c(data) == crc32c(data)


def test_works_without_google_crc32c(tmp_path: Path, root: Path) -> None:
    code = (
        "import sys, pathlib, warnings; sys.modules['google_crc32c'] = None; warnings.simplefilter('error')\n"
        "from stabkit.dashboard.writer import DashboardWriter\n"
        f"DashboardWriter(pathlib.Path({str(tmp_path)!r})).scalars(1, {{'a': 1}})"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "google-crc32c" in result.stderr
    assert scalars(tmp_path) == {"user/a": [(1, 1)]}


def test_imports_no_torch(root: Path) -> None:
    code = (
        "import sys, stabkit.dashboard.writer\n"
        "assert not {'torch', 'tensorflow', 'grpc', 'absl'} & {name.split('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_unwritable_directory(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        DashboardWriter(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        DashboardWriter(tmp_path / "file")


def test_full_disk_leaves_whole_records(
    writer: DashboardWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.step(0, record(1))
    write, calls = os.write, [0]

    def half(file: int, data: bytes) -> int:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) // 2])

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(os, "write", half)
        writer.step(0, record(2))
    writer.step(0, record(3))
    assert [s for s, _ in scalars(tmp_path)["health/loss"]] == [1, 3]


def test_close_twice_and_write_after(writer: DashboardWriter) -> None:
    writer.flush()
    writer.close()
    writer.close()
    with pytest.raises(OSError):
        writer.scalars(1, {"a": 1})


def test_restart_replaces_what_it_repeats(tmp_path: Path) -> None:
    """Where steps overlap the later wins, in a later file and in the same."""
    first = DashboardWriter(tmp_path)
    first.layout(0, LAYOUT)
    for step in range(1, 6):
        first.step(0, record(step, loss=1.0))
        first.scalars(step, {"x": step})
    first.close()
    again = DashboardWriter(tmp_path)
    again.layout(0, LAYOUT)
    for step, loss in [(3, 7.0), (4, 8.0), (5, 8.0), (4, 9.0)]:
        again.step(0, record(step, loss=loss))
    shown = scalars(tmp_path)
    assert shown["health/loss"] == [(1, 1), (2, 1), (3, 7), (4, 9)]
    assert [step for step, _ in shown["user/x"]] == [1, 2]
    tags = event_accumulator.EventAccumulator(str(tmp_path)).Reload().Tags()
    assert tags["tensors"] == [metadata.CONFIG_SUMMARY_TAG]


def test_optimizers_that_count_on_their_own_keep_their_points(writer: DashboardWriter, tmp_path: Path) -> None:
    for step in range(1, 6):
        writer.step(1, record(2 * step - 1))
        writer.step(1, record(2 * step))
        writer.step(0, record(step))
    shown = scalars(tmp_path)
    assert [step for step, _ in shown["health/loss"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in shown["optimizer1/health/loss"]] == list(range(1, 11))


@given(st.integers(-(2**63), 2**63 - 1), st.floats(width=32, allow_nan=False), st.text(max_size=200))
def test_encoding_is_protobufs(step: int, value: float, tag: str) -> None:
    encoder = events.ScalarEncoder(describe)
    for _ in range(2):  # with the description, then without
        event = Event.FromString(events.encode_event(1.5, step, encoder.encode([tag], [value])))
        assert (event.wall_time, event.step) == (1.5, step)
        assert [(v.tag, v.simple_value) for v in event.summary.value] == [(tag, value)]
