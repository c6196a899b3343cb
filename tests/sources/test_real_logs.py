"""Every log of other projects is read as its own tool wrote it: all points, the right columns, the numbers as printed."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest

import stabkit

# How many points each log has by its own account, and which column is the loss.
POINTS = {
    "ap_adamg_vit_noisy.measurements.csv": (1213, "loss"),
    "ap_baseline_wmt_2spikes.measurements.csv": (1334, "loss"),
    "ap_baseline_wmt_2spikes.events.out.tfevents.1707295642.9da4e863d3c7.1498.1.v2": (1334, "loss"),
    "ap_caspr_wmt_spikes2.measurements.csv": (869, "loss"),
    "ap_shampoo_criteo_nan.events.out.tfevents.1717300336.07290076dad3.1566.0.v2": (99, "loss"),
    "ap_nadamwseq_deepspeech_restart.measurements.csv": (919, "loss"),
    "ap_sfprodigy_deepspeech_ok.measurements.csv": (161, "loss"),
    "mn_adamw_ok.log": (9536, "trl"),
    "pg_behemoth_v10_nan.log": (48, "train_loss"),
    "ds_chat_sft_lossscale.log": (736, None),
    "bs_tr11_176B_spike31219_snip.log": (11, "lm loss"),
    "bs_tr8b_104B_scalecollapse_snip.log": (9, "lm loss"),
}


@pytest.mark.parametrize("name", POINTS)
def test_all_points_and_the_right_loss(real_logs: Path, name: str) -> None:
    points, loss = POINTS[name]
    run = stabkit.load(real_logs / name)
    assert (len(run.steps), run.facts["taken"].get("loss"), run.attempts) == (points, loss, 1)
    assert not run.notes
    assert not any(str(outcome.status) == "failed" for outcome in stabkit.analyze(run).outcomes)


@pytest.mark.parametrize("name", [name for name in POINTS if name.endswith(".csv")])
def test_tables_equal_what_the_csv_module_reads(real_logs: Path, name: str) -> None:
    run = stabkit.load(real_logs / name)
    with open(real_logs / name, newline="") as file:
        table = list(csv.DictReader(file))
    for quantity, column in run.facts["taken"].items():
        if quantity == "step":
            continue
        expected = {int(row["global_step"]): float(row[column]) for row in table if row[column]}
        series = run.series(quantity)
        assert series.steps.tolist() == sorted(expected) and dict(zip(series.steps.tolist(), series.values)) == expected  # noqa: B905


def test_event_files_hold_what_the_tables_hold(real_logs: Path) -> None:
    for name in ("ap_baseline_wmt_2spikes", "ap_shampoo_criteo_nan"):
        table = stabkit.load(real_logs / f"{name}.measurements.csv")
        events = stabkit.load(next(real_logs.glob(f"{name}.events*")))
        for metric in ("loss", "grad_norm"):
            there = table.series(metric)
            here = events.series(metric).values[np.searchsorted(events.steps, there.steps)]
            np.testing.assert_allclose(here, there.values, rtol=1e-6)


def test_a_nan_loss_is_a_value_in_event_files_and_an_empty_cell_in_the_table_is_told(real_logs: Path) -> None:
    events = stabkit.load(next(real_logs.glob("ap_shampoo_criteo_nan.events*")))
    assert np.isnan(events.series("loss").values[81:]).all() and np.isinf(events.series("grad_norm").values[80])
    assert stabkit.analyze(events).outcome("SK301").findings[0].first_step == 80
    table = stabkit.load(real_logs / "ap_shampoo_criteo_nan.measurements.csv")
    assert table.steps[-1] == 80 and any("empty in the last 18 rows, after step 80" in note for note in table.notes)


def test_printed_losses(real_logs: Path) -> None:
    text = (real_logs / "mn_adamw_ok.log").read_text()
    expected = {int(step): float(loss) for step, loss in re.findall(r"^s:(\d+) trl:(\S+)$", text, re.M)}
    series = stabkit.load(real_logs / "mn_adamw_ok.log").series("loss")
    assert dict(zip(series.steps.tolist(), series.values.tolist(), strict=True)) == expected


def test_numbers_as_printed(real_logs: Path) -> None:
    nan = stabkit.load(real_logs / "pg_behemoth_v10_nan.log")
    at = nan.steps.tolist().index(1150)
    assert nan.series("loss").values[at] == pytest.approx(3.18, abs=0.005) and math.isnan(nan.series("loss").values[at + 1])
    spike = stabkit.load(real_logs / "bs_tr11_176B_spike31219_snip.log")
    assert spike.series("grad_norm").values[:4].tolist() == [0.242, 0.947, 2.39, 15.886]
    scale = stabkit.load(real_logs / "bs_tr8b_104B_scalecollapse_snip.log").series("loss_scale")
    assert scale.values.tolist() == [2.0**20] * 3 + [2.0**19, 2.0**18, 2.0**17, 2.0**17, 2.0**16, 2.0**15]
    skips = stabkit.load(real_logs / "ds_chat_sft_lossscale.log")
    assert skips.series("loss_scale").values[0] == 2048


def test_a_directory_of_them_is_a_run_each(real_logs: Path) -> None:
    assert len(stabkit.sources.runs_in(str(real_logs))) >= len(POINTS) + 1
