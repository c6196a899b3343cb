"""Tables of text: every cell is read as it was meant, and an empty one is missing."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stabkit
from stabkit.errors import NotALogError, UsageError

Write = Callable[..., Path]
NAN = math.nan


def loss(path: Path, **about: object) -> dict[int, float]:
    """The losses that the log has, by step."""
    run = stabkit.load(path, **about)  # type: ignore[arg-type]
    seen = run.stream.step_values["loss_reduction"] > 0
    return dict(zip(run.steps[seen].tolist(), run.series("loss").values[seen].tolist(), strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "step,loss\n1,2.5\n2,1.5\n",
        "\ufeffstep,loss\r\n1,2.5\r\n2,1.5\r\n",
        "step;loss\n1;2,5\n2;1,5\n",
        "step\tloss\n1\t2.5\n2\t1.5\n",
        "step loss\n1 2.5\n2 1.5\n",
        '"step","loss"\n"1","2.5"\n"2","1.5"',
        "# made by hand\nDate,step,loss\n2024-01-01,1,2.5\n2024-01-02,2,1.5\n",
        'note,step,loss\n"a, b",1,2.5\n"two\nlines",2,1.5\n',
        "Step,Value,loss,loss_scale\n1,0,2.5,65536\n2,0,1.5,65536\n",
        "step,loss\r1,2.5\r2,1.5\r",
    ],
    ids=["plain", "BOM and CRLF", "semicolon", "tab", "space", "quoted", "dates", "quoted commas", "scale", "old Mac"],
)
def test_all_dialects_are_read_alike(write: Write, text: str) -> None:
    assert loss(write("log.csv", text)) == {1: 2.5, 2: 1.5}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress], ids=["plain", "gzip"])
def test_encodings_and_gzip_are_told_by_their_content(write: Write, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    assert loss(write("log", pack("step,loss\n1,2.5\n2,1.5\n".encode(encoding)))) == {1: 2.5, 2: 1.5}


def test_an_empty_cell_is_missing_and_the_word_nan_is_a_value(write: Write) -> None:
    run = stabkit.load(write("log.csv", "step,loss,lr\n1,2.5,0.1\n2,,0.1\n3,nan,0.1\n4,null,0.1\n5,1.5,\n"))
    assert run.steps.tolist() == [1, 2, 3, 4, 5]
    assert run.stream.step_values["loss_reduction"].tolist() == [1, 0, 1, 0, 1]
    found = stabkit.analyze(run).outcome("SK301").findings
    assert [finding.first_step for finding in found] == [3]
    assert run.series("lr").values.tolist()[:4] == [0.1] * 4 and math.isnan(run.series("lr").values[4])


def test_a_log_that_only_lacks_losses_has_no_finding(write: Write) -> None:
    """The healthy twin: every other loss is missing."""
    rows = "".join(f"{step},{'' if step % 2 else 2.5 - step / 100},0.1\n" for step in range(60))
    diagnosis = stabkit.analyze(stabkit.load(write("log.csv", "step,loss,lr\n" + rows)))
    assert not diagnosis.findings and str(diagnosis.outcome("SK301").status) == "clear"


def test_a_loss_that_is_nan_from_the_first_row_on_is_found(write: Write) -> None:
    run = stabkit.load(write("log.csv", "step,loss\n" + "".join(f"{step},NaN\n" for step in range(1, 60))))
    assert stabkit.analyze(run).outcome("SK301").findings[0].first_step == 1


def test_empty_losses_to_the_end_are_told(write: Write) -> None:
    rows = "".join(f"{step},{2.5 if step < 40 else ''},1.0\n" for step in range(60))
    run = stabkit.load(write("log.csv", "step,loss,grad_norm\n" + rows))
    assert any("empty in the last 20 rows, after step 39 and up to step 59" in note for note in run.notes)


def test_a_missing_cell_of_one_series_keeps_the_row_of_another(write: Write) -> None:
    run = stabkit.load(write("log.csv", "step,loss,grad_norm,val_loss\n1,,3.0,\n2,2.0,,\n2,,,9.0\n3,,,8.0\n4,1.0,2.0,\n"))
    assert run.steps.tolist() == [1, 2, 4]  # of an evaluation alone there is no record
    np.testing.assert_array_equal(run.series("grad_norm").values, [3.0, NAN, 2.0])
    np.testing.assert_array_equal(run.series("loss").values, [NAN, 2.0, 1.0])
    assert run.series("val_loss").steps.tolist() == [2, 3]


def test_damage_is_told_by_line_and_the_rest_is_read(write: Write) -> None:
    text = "step,loss\n1,2.5\n2,1.5,9,9\n3,\0\0\n4,abc\n5,0.5\n6"
    run = stabkit.load(write("log.csv", text))
    assert run.series("loss").steps.tolist() == [1, 5]
    notes = "; ".join(run.notes)
    assert "line 3 could not be read: it has 4 cells where there are 2 columns" in notes
    assert "line 4 could not be read: it holds zero bytes" in notes
    assert "line 7, the last, is incomplete" in notes


def test_a_header_that_is_written_again_is_no_row(write: Write) -> None:
    assert loss(write("log.csv", "step,loss\n1,2.5\nstep,loss\n2,1.5\nlr,step,loss\n0.1,3,1.0\n")) == {1: 2.5, 2: 1.5, 3: 1.0}


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_a_gzip_file_that_is_cut_off_is_read_as_far_as_it_goes(write: Write, cut: float) -> None:
    rng = np.random.default_rng(0)
    whole = gzip.compress(("step,loss\n" + "".join(f"{i},{rng.random()}\n" for i in range(20_000))).encode())
    run = stabkit.load(write("log.csv.gz", whole[: int(cut * len(whole))]))
    assert len(run.steps) > 0.8 * cut * 20_000 and run.steps.tolist() == list(range(len(run.steps)))
    assert any("the gzip file is cut off" in note for note in run.notes)


def test_a_mapping_overrides_the_guess(write: Write) -> None:
    path = write("log.csv", "it,loss,train/ce\n1,2.5,7.5\n2,1.5,6.5\n")
    assert loss(path, mapping={"loss": "train/ce"}) == {1: 7.5, 2: 6.5}
    assert not stabkit.load(path, mapping={"loss": "", "lr": "train/ce"}).has("loss")
    with pytest.raises(UsageError, match=r"the column 'train/cee' is not there; there are train/ce"):
        stabkit.load(path, mapping={"loss": "train/cee"})
    with pytest.raises(UsageError, match=r"there is no quantity 'los' to map a column to; did you mean loss"):
        stabkit.load(path, mapping={"los": "train/ce"})


def test_columns_without_a_known_name_are_refused_with_what_there_is(write: Write) -> None:
    with pytest.raises(NotALogError, match=r"no column was recognised. There are a, b. Say which is which: --map step=NAME"):
        stabkit.load(write("log.csv", "a,b\n1,2\n2,3\n"))


def test_json_lines(write: Write) -> None:
    records = [
        {"step": 1, "train": {"loss": 2.5, "lr": [0.1, 0.2]}, "name": "x"},
        {"step": 1, "val": {"loss": 9.0}},
        {"step": 2, "train": {"loss": "NaN"}},
        {"step": 3, "train": {"loss": None}},
        {"step": 4, "train": {"loss": math.inf}},
    ]
    text = "\n".join(map(json.dumps, records)) + '\nnot json\n{"step": 5, "tr'
    run = stabkit.load(write("log.jsonl", text))
    assert run.facts["taken"]["loss"] == "train/loss"
    assert run.steps.tolist() == [1, 2, 4]
    np.testing.assert_array_equal(run.series("loss").values, [2.5, NAN, math.inf])
    assert "line 6 could not be read: it is no JSON object" in run.notes
    assert any("line 7, the last, is incomplete" in note for note in run.notes)


cells = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(cells, cells, cells), min_size=40, max_size=80), st.randoms(), st.booleans())
def test_shuffled_rows_with_repeats_equal_an_oracle(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float | None, ...]], random: object, as_json: bool
) -> None:
    """Whatever the order, a step has the last value that was written for it, and missing stays missing."""
    steps = [index % (len(rows) // 2) for index in range(len(rows))]
    random.shuffle(steps)  # type: ignore[attr-defined]
    names = ("loss", "grad_norm", "note")
    table = [dict(zip(("step", *names), (step, *row), strict=True)) for step, row in zip(steps, rows, strict=True)]
    path = tmp_path_factory.mktemp("shuffled") / "log"
    if as_json:
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ("step", *names))
            writer.writeheader()
            writer.writerows(table)
    expected: dict[str, dict[int, float]] = {name: {} for name in names}
    for row in table:
        for name in names:
            if row[name] is not None:
                expected[name][row["step"]] = row[name]  # type: ignore[index, assignment]
    if not expected["loss"] and not expected["grad_norm"]:
        return
    falls = np.sum(np.diff([row["step"] for row in table if row["loss"] is not None] or [0]) < 0)  # type: ignore[operator]
    if not expected["loss"] or falls <= max(3, len(expected["loss"]) / 5):
        return  # few of them: these are taken for resumes, which other tests are about
    run = stabkit.load(path)
    for name in names:
        if not expected[name]:
            assert not run.has(name)
            continue
        at, values = sorted(expected[name]), [expected[name][step] for step in sorted(expected[name])]
        if name == "note":
            assert run.series(name).steps.tolist() == at
            np.testing.assert_array_equal(run.series(name).values, values)
        else:
            found = run.stream.step_values[name][np.searchsorted(run.steps, at)]
            np.testing.assert_array_equal(found, values)
    assert set(run.steps.tolist()) == {*expected["loss"], *expected["grad_norm"]}


def test_everything_on_the_command_line(write: Write, root: Path) -> None:
    """Two runs in a directory are judged, one of them ill; what is not a log is passed over."""
    import subprocess
    import sys

    healthy = write("runs/a.csv", "step,train/ce\n" + "".join(f"{step},{3 - step / 100}\n" for step in range(100)))
    write("runs/b.jsonl", "".join(json.dumps({"step": s, "train/ce": 3.0 if s < 50 else NAN}) + "\n" for s in range(100)))
    write("runs/README.md", "# no log\n")

    def stabkit_(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stabkit", *arguments], cwd=root, capture_output=True, text=True, check=False
        )

    done = stabkit_("analyze", str(healthy.parent), "--map", "loss=train/ce", "--fail-on", "error")
    assert done.returncode == 1, done.stderr
    assert "2 paths: findings in 1, nothing found in 1" in done.stdout and "nonfinite-value at step 50" in done.stdout
    told = stabkit_("info", str(healthy), "--map", "loss=train/ce").stdout
    assert "columns       loss = train/ce (as told), step = step\n" in told
    assert stabkit_("analyze", str(healthy), "--map", "loss").returncode == 2
