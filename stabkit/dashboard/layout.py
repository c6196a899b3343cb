"""What the dashboards show: modules to merge tensors into, each tag's description, and the Custom Scalars page."""

from __future__ import annotations

from collections.abc import Sequence

from tensorboard.plugins.custom_scalar import layout_pb2

from stabkit.metric import METRICS
from stabkit.runlog import TensorInfo

__all__ = ["CLIP_WINDOW", "MODULE_LIMIT", "custom_scalars", "describe", "modules_of"]

MODULE_LIMIT = 16
"""Most lines in a chart of modules. TensorBoard draws all of a run in one colour: more cannot be told apart."""
CLIP_WINDOW = 100
"""Steps that the clip rate looks back on."""

_REST = "others"
_HEALTH_TITLES = {
    "Loss": r"loss$",
    "Learning rate": r"lr(/.+)?$",
    "Gradient norm before clipping and as used": r"grad_norm(_used)?$",
    "Clip rate": r"clip_rate$",
    "Update ratio": r"update_ratio$",
}
_MODULE_TITLES = {
    "Gradient norm by module": r"grad_norm(_used)?/.+",
    "Update ratio by module": r"update_ratio/.+",
    "rms_ratio by module (near 1 is healthy)": r"rms_ratio/.+",
}
_DESCRIPTIONS = {
    "health/clip_rate": f"share of the last {CLIP_WINDOW} steps whose gradient was clipped (clip coefficient below 1)",
    "modules/grad_norm": "L2 norm of the module's gradient before clipping",
    "modules/grad_norm_used": "L2 norm of the module's gradient as the optimizer consumed it",
    "modules/update_ratio": "norm of the module's update over the norm of its weights",
    "modules/rms_ratio": "sqrt(mean(g² / max(v̂, eps²))) over the module: near 1 the second moment fits the gradient; "
    "well above 1 the gradient outgrew it and the steps are too large",
}


def custom_scalars() -> layout_pb2.Layout:
    """The Custom Scalars page. TensorBoard matches the patterns from a tag's beginning."""
    return layout_pb2.Layout(
        version=0,
        category=[
            _category("Health", "health", _HEALTH_TITLES),
            _category("Modules", "modules", _MODULE_TITLES),
        ],
    )


def describe(tag: str) -> str:
    """The description of a tag, "" for one of the user's."""
    parts = tag.split("/")
    if parts[0].startswith("optimizer") and len(parts) > 2:
        parts = parts[1:]
    key = "/".join(parts[:2])
    if key in _DESCRIPTIONS or parts[0] != "health":
        return _DESCRIPTIONS.get(key, "")
    metric = METRICS.get((parts[1], "group" if parts[1] == "lr" else "step"))
    return metric.definition if metric else ""


def modules_of(tensors: Sequence[TensorInfo], limit: int = MODULE_LIMIT) -> list[str]:
    """The module that each tensor counts to: at most `limit` of them, at the deepest level of the model that allows it.

    Where one level deeper only numbered siblings are too many (the 32 blocks of a transformer), neighbours share a line
    ("blocks.0-1"). A model with too many modules at its top level keeps the largest; the rest are "others".

    Args:
        tensors: The tensors of a layout.
        limit: Most modules wanted.
    """
    paths = [tuple(t.name.split(".")[:-1]) or (t.name,) for t in tensors]
    plain: list[str] = []
    for depth in range(1, max(map(len, paths), default=0) + 1):
        labels = [".".join(path[:depth]) for path in paths]
        if len(set(labels)) > limit:
            folded = _fold([path[:depth] for path in paths], limit)
            if folded is not None and len(set(folded)) > len(set(plain)):
                return folded
            return plain or _largest(labels, [t.numel for t in tensors], limit)
        plain = labels
    return plain


def _fold(paths: Sequence[tuple[str, ...]], limit: int) -> list[str] | None:
    """Labels in which neighbouring numbered siblings share one, as few as keeps to the limit; None where that fails."""
    siblings: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for path in dict.fromkeys(paths):
        if path[-1].isdecimal():
            siblings.setdefault(path[:-1], []).append(path)
    for family in siblings.values():
        family.sort(key=lambda path: int(path[-1]))
    for size in range(2, max(map(len, siblings.values()), default=0)):
        names: dict[tuple[str, ...], str] = {}
        for family in siblings.values():
            for i in range(0, len(family), size):
                chunk = family[i : i + size]
                label = ".".join(chunk[0]) + (f"-{chunk[-1][-1]}" if len(chunk) > 1 else "")
                names.update(dict.fromkeys(chunk, label))
        labels = [names.get(path, ".".join(path)) for path in paths]
        if len(set(labels)) <= limit:
            return labels
    return None


def _largest(labels: Sequence[str], sizes: Sequence[int], limit: int) -> list[str]:
    total: dict[str, int] = {}
    for label, size in zip(labels, sizes, strict=True):
        total[label] = total.get(label, 0) + size
    kept = set(sorted(total, key=lambda label: -total[label])[: limit - 1])
    return [label if label in kept else _REST for label in labels]


def _category(title: str, group: str, charts: dict[str, str]) -> layout_pb2.Category:
    start = rf"(optimizer\d+/)?{group}/"
    return layout_pb2.Category(
        title=title,
        chart=[
            layout_pb2.Chart(title=name, multiline=layout_pb2.MultilineChartContent(tag=[start + pattern]))
            for name, pattern in charts.items()
        ],
    )
