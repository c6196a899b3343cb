"""How tensors are merged into modules, and the Custom Scalars page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dashboard_log import LAYOUT, NAN, decoded, last, measured, record, scalars
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from stabkit.dashboard.layout import MODULE_LIMIT, custom_scalars, describe, modules_of
from stabkit.dashboard.writer import DashboardWriter
from stabkit.runlog import Layout, TensorInfo
from stabkit.runlog.record import Group


def test_modules_merge_sums(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.layout(0, LAYOUT)
    writer.step(0, record(tensors=measured()))
    shown = {tag: value for tag, value in last(tmp_path).items() if tag.startswith("modules/")}
    assert shown == pytest.approx({
        "modules/grad_norm/wte": 2.0, "modules/grad_norm/head": 5.0,
        "modules/update_ratio/wte": 0.1, "modules/update_ratio/head": 0.1,
        "modules/rms_ratio/wte": 1.0, "modules/rms_ratio/head": 0.5,
    })  # fmt: skip


def test_gradient_as_used_where_the_one_before_clipping_is_unknown(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.layout(0, LAYOUT)
    writer.step(0, record(tensors=measured(grad_sumsq=[4, NAN, NAN])))
    shown = last(tmp_path)
    assert "modules/grad_norm/wte" not in shown
    assert shown["modules/grad_norm_used/head"] == 2.5


def test_tensors_without_a_gradient_or_moments_are_left_out(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.layout(0, LAYOUT)
    missing = [NAN, 4, NAN]
    writer.step(0, record(tensors=measured(grad_sumsq=missing, grad_used_sumsq=missing, rms_sum=missing,
                                           update_sumsq=[NAN] * 3)))  # fmt: skip
    shown = {tag: value for tag, value in last(tmp_path).items() if tag.startswith("modules/")}
    assert shown == {"modules/grad_norm/head": 2, "modules/rms_ratio/head": 1}


def test_another_layout(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.layout(0, LAYOUT)
    writer.step(0, record(1, tensors=measured()))
    writer.layout(0, Layout(LAYOUT.tensors[:1]))
    writer.step(0, record(2, tensors=measured()[:1]))
    writer.step(0, record(3))  # tensors not measured at this step
    with pytest.raises(ValueError, match="layout of 1"):
        writer.step(0, record(4, tensors=measured()))
    shown = scalars(tmp_path)
    assert [step for step, _ in shown["modules/grad_norm/wte"]] == [1, 2]
    assert [step for step, _ in shown["modules/grad_norm/head"]] == [1]
    assert [step for step, _ in shown["health/loss"]] == [1, 2, 3]


def test_several_optimizers(writer: DashboardWriter, tmp_path: Path) -> None:
    for optimizer in (0, 1, 2):
        writer.layout(optimizer, Layout(LAYOUT.tensors[:1]))
        writer.step(optimizer, record(loss=float(optimizer), tensors=measured()[:1], clip_coefficient=1.0))
    shown = last(tmp_path)
    assert shown["health/loss"] == 0
    assert shown["optimizer1/health/loss"] == 1
    assert shown["optimizer2/modules/grad_norm/wte"] == 2
    assert len(shown) == 3 * 7


def infos(*names: str) -> list[TensorInfo]:
    return [TensorInfo(name, (4,)) for name in names]


def transformer(blocks: int) -> list[TensorInfo]:
    parts = ("ln1.weight", "attn.qkv.weight", "attn.proj.weight", "mlp.up.weight", "mlp.down.weight")
    inner = [f"blocks.{b}.{part}" for b in range(blocks) for part in parts]
    return infos("wte.weight", *inner, "ln_f.weight", "lm_head.weight")


def distinct(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def test_module_depth() -> None:
    assert distinct(modules_of(transformer(2)))[1:4] == ["blocks.0.ln1", "blocks.0.attn.qkv", "blocks.0.attn.proj"]
    assert distinct(modules_of(transformer(4)))[1:4] == ["blocks.0.ln1", "blocks.0.attn", "blocks.0.mlp"]
    assert distinct(modules_of(transformer(12))) == ["wte", *(f"blocks.{b}" for b in range(12)), "ln_f", "lm_head"]
    assert distinct(modules_of(transformer(32)))[:3] == ["wte", "blocks.0-2", "blocks.3-5"]
    assert distinct(modules_of(transformer(25)))[-3:] == ["blocks.24", "ln_f", "lm_head"]
    assert modules_of(infos("weight", "bias")) == ["weight", "bias"]
    assert modules_of(infos("0.weight", "0.bias", "2.weight")) == ["0", "0", "2"]
    assert modules_of([]) == []


def test_flat_model_keeps_its_largest_modules() -> None:
    tensors = [TensorInfo(f"part{chr(97 + i % 26)}{i}.weight", (i + 1,)) for i in range(30)]
    labels = modules_of(tensors)
    assert labels[15:] == [t.name.removesuffix(".weight") for t in tensors[15:]]
    assert set(labels[:15]) == {"others"}


@given(st.lists(st.lists(st.sampled_from(["a", "b", "0", "1", "2", "07", "x y"]), min_size=1, max_size=4), max_size=60),
       st.integers(2, MODULE_LIMIT))  # fmt: skip
def test_never_too_many_modules(paths: list[list[str]], limit: int) -> None:
    tensors = infos(*(".".join([*path, "weight"]) for path in paths))
    labels = modules_of(tensors, limit)
    assert len(labels) == len(tensors)
    assert len(set(labels)) <= limit
    assert labels == modules_of(tensors, limit)


def test_page_is_written_once_and_shows_every_tag_but_the_minor(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.layout(0, LAYOUT)
    writer.layout(1, LAYOUT)
    pages = [e.summary.value[0] for e in decoded(tmp_path)[1:]]
    assert len(pages) == 1
    assert pages[0].metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME
    page = layout_pb2.Layout.FromString(pages[0].tensor.string_val[0])
    assert page == custom_scalars()
    assert [(c.title, [chart.title for chart in c.chart]) for c in page.category] == [
        ("Health", ["Loss", "Learning rate", "Gradient norm before clipping and as used", "Clip rate", "Update ratio"]),
        ("Modules", ["Gradient norm by module", "Update ratio by module", "rms_ratio by module (near 1 is healthy)"]),
    ]
    full = {"grad_norm": 1.0, "grad_norm_used": 1.0, "clip_coefficient": 1.0, "weight_norm": 1.0, "update_norm": 1.0,
            "loss_scale": 1.0}  # fmt: skip
    writer.step(0, record(1, tensors=measured(), **full))
    writer.step(1, record(1, tensors=measured(), groups=(Group(lr=1.0), Group(lr=0.5)), **full))
    charts = [chart.multiline.tag[0] for category in page.category for chart in category.chart]
    tags = [tag for tag in scalars(tmp_path) if not tag.endswith(("clip_coefficient", "loss_scale", "skipped"))]
    for tag in tags:
        assert sum(bool(re.match(pattern, tag)) for pattern in charts) == 1, tag
    assert all(any(re.match(pattern, tag) for tag in tags) for pattern in charts)


def test_every_tag_of_ours_is_described(writer: DashboardWriter, tmp_path: Path) -> None:
    writer.layout(1, LAYOUT)
    writer.step(1, record(tensors=measured(), grad_norm=1.0, clip_coefficient=1.0, loss_scale=1.0))
    assert all(describe(tag) for tag in scalars(tmp_path))
    assert describe("user/loss") == ""
