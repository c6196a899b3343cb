"""What is not a log, or not one for this version, is refused with a sentence that says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from runlog_records import layout_of, record

import stabkit
from stabkit.errors import LogVersionError, NotALogError, UsageError
from stabkit.runlog import RunWriter
from stabkit.runlog import format as log_format
from stabkit.runlog.lines import checksum_line


def refused(path: object, error: type[Exception] = NotALogError) -> str:
    with pytest.raises(error) as caught:
        stabkit.load(path)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_missing_path(tmp_path: Path) -> None:
    assert "there is no" in refused(tmp_path / "nothing")


def test_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    assert "is empty" in refused(tmp_path)
    (tmp_path / "rank00000").mkdir()
    assert "is empty" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prices.csv", b"article,price\n1,2.0\n"),
        ("events.out.tfevents.1700000000.host.1.0", b'\x18\0\0\0\0\0\0\0\xa3\x7fK"\t\0\0\xc0l\x04\x1f\xdaA'),
        ("weights.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'"),
        ("empty", b""),
    ],
)
def test_a_file_of_another_program(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    said = refused(tmp_path / name)
    assert "a file that stabkit did not write" in said or "no column was recognised" in said
    assert f"it holds {name}" in refused(tmp_path)


def test_a_file_of_a_log(write: Callable[..., Path]) -> None:
    logdir = write([1])
    for name in ("run.json", "optimizer0/steps-000000.npy"):
        assert "Give that directory" in refused(logdir / "rank00000" / name)
    assert stabkit.load(logdir / "rank00000").steps.tolist() == [1]


def test_a_directory_of_pictures(tmp_path: Path) -> None:
    for i in range(9):
        (tmp_path / f"{i}.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    assert "it holds 0.jpg, 1.jpg, 2.jpg and 6 more" in refused(tmp_path)


@pytest.mark.parametrize("content", ['{"name": "sweep"}', "[1, 2]", "3", "", "\0\0", '{"crc":1,"value":{}}'])
def test_a_run_json_of_another_program(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": "start"}) + "\n")
    assert "holds no log that stabkit wrote" in refused(tmp_path)


def test_a_directory_of_several_runs(tmp_path: Path, write: Callable[..., Path]) -> None:
    for i in range(3):
        write([1], f"run{i}")
    message = refused(tmp_path)
    assert "several runs: run0, run1, run2." in message and f"{tmp_path}/*" in message


def test_a_newer_version(tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    logdir = write([1])
    manifest = logdir / "rank00000" / "run.json"
    manifest.write_bytes(checksum_line({"schema": 2, "something": "new"}))
    message = refused(logdir, LogVersionError)
    assert "log format 2" in message and "Update stabkit" in message
    with pytest.raises(LogVersionError, match="Choose another directory"):
        RunWriter(logdir, {})
    manifest.write_bytes(checksum_line({"schema": 0}))
    assert "Read it with the stabkit that wrote it" in refused(logdir, LogVersionError)


def test_a_newer_version_without_its_run_json(tmp_path: Path, write: Callable[..., Path]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_format, "SCHEMA_VERSION", 2)
        logdir = write([1])
    for name in ("run.json", "events.jsonl"):
        (logdir / "rank00000" / name).unlink()
    with pytest.raises(LogVersionError, match="Update stabkit"):
        stabkit.load(logdir)


def test_columns_of_another_minor_version(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are known by name: one that was added later is missing, one that this version lacks does not disturb."""
    renamed = tuple("from_the_future" if name == "grad_zeros" else name for name in log_format.COLUMN_NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_format, "COLUMN_NAMES", renamed)
        log_format.tensor_dtype.cache_clear()
        logdir = write([1, 2])
    log_format.tensor_dtype.cache_clear()
    run = stabkit.load(logdir)
    assert run.notes == ()
    assert not run.has("grad_zero_fraction", "tensor") and run.has("grad_absmax", "tensor")
    assert run.stream.columns["from_the_future"].shape == (2, 2)


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_permission_denied(tmp_path_factory: pytest.TempPathFactory, write: Callable[..., Path]) -> None:
    import shutil
    import tempfile

    logdir = write([1, 2])
    folder = Path(tempfile.mkdtemp())  # pytest's own directories are closed to others
    try:
        shutil.copytree(logdir, folder / "run")
        folder.chmod(0o755)
        rank = folder / "run" / "rank00000"
        (rank / "optimizer0" / "tensors-000000.npy").chmod(0)
        (rank / "events.jsonl").chmod(0)
        with nobody():
            run = stabkit.load(folder / "run")
        assert run.steps.tolist() == [1, 2]
        assert run.notes == (
            "events.jsonl cannot be read (Permission denied)",
            "optimizer0/tensors-000000.npy: cannot be read (Permission denied)",
        )
        (folder / "run").chmod(0)
        with nobody():
            assert "Permission denied. Check its permissions." in refused(folder / "run")
    finally:
        (folder / "run").chmod(0o755)
        shutil.rmtree(folder)


def test_odd_scalars(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, {})
    writer.scalars(1, {"val": 1, "batch": "17", "name": "inf", "flag": True, "none": None, "list": [1]})
    writer.scalars(2, {"val": float("nan"), "huge": 10**400, "batch": "nanobatch"})
    writer.scalars(3, {"val": float("-inf")})
    writer._lines["scalars.jsonl"].append({"step": "three", "values": {"val": 1}})
    writer._lines["scalars.jsonl"].append({"step": 10**30, "values": {"val": 1}})
    writer._lines["scalars.jsonl"].append({"step": 4, "values": "none"})
    writer.close()
    run = stabkit.load(tmp_path)
    assert run.series("val").steps.tolist() == [1, 2, 3]
    assert np.array_equal(run.series("val").values, [1, np.nan, -np.inf], equal_nan=True)
    assert set(run.scalars) == {"val", "name", "flag"}
    assert run.notes == ()


def test_url(write: Callable[..., Path]) -> None:
    pytest.importorskip("fsspec")
    logdir = write(range(1, 6))
    url = f"file://{logdir}"
    run = stabkit.load(url)
    assert run.path == url and run.steps.tolist() == [1, 2, 3, 4, 5]
    assert run.table("grad_absmax").values[:, 0].tolist() == [1, 2, 3, 4, 5], "readable after the copy is gone"
    assert "there is no" in refused(f"file://{logdir}/nothing")
    assert "is a file" in refused(f"file://{logdir}/rank00000/run.json")
    assert "needs another package" in refused("nosuchprotocol://bucket/run", UsageError)


def test_url_without_fsspec(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['fsspec'] = sys.modules['fsspec.core'] = None\n"
        "import stabkit\n"
        "try:\n    stabkit.load('s3://bucket/run')\n"
        "except stabkit.runlog.reader.UsageError as error:\n    assert 'pip install fsspec' in str(error)\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_records_that_cannot_be_stored_are_refused_and_harm_nothing(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, {})
    number = writer.layout(0, layout_of("a", "b"))
    writer.begin_attempt(0, 0)
    writer.write(0, record(1, 0, number))
    wrong = record(2, 0, number)
    assert wrong.tensors is not None
    wrong.tensors = wrong.tensors[:, :-1]
    with pytest.raises(ValueError, match="could not broadcast"):
        writer.write(0, wrong)
    writer.write(0, record(3, 0, number))
    writer.close()
    assert stabkit.load(tmp_path).stream.tensor_steps.tolist() == [1, 3]
