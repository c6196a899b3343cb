"""A generated log of any size, and the page's parts as a browser's parser sees them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import numpy as np

from stabkit.runlog import RunLog, TensorInfo

SPIKE = 0.613
"""Where in the log one tensor's gradient, and the loss, rise for a single step."""


def long_run(steps: int, tensors: int, seed: int = 0) -> RunLog:
    """A quiet run of transformer-like tensors with one spike of one step in one tensor."""
    rng = np.random.default_rng(seed)
    parts = ("q", "k", "v", "o", "gate", "up", "down", "norm")
    names = [f"model.layers.{i // 8}.{parts[i % 8]}.weight" for i in range(tensors)]
    infos = tuple(TensorInfo(name, (64, 64), "float32", "matrix", 0) for name in names)
    decay = (np.linspace(1, 0.1, steps) ** 2)[:, None]
    noise = rng.lognormal(0, 0.2, (steps, 1)) * rng.lognormal(0, 1, (1, tensors))
    gradient = decay * noise
    spike = int(SPIKE * steps)
    gradient[spike, tensors // 2] *= 1e6
    columns = {
        "grad_sumsq": gradient, "grad_used_sumsq": gradient, "update_sumsq": 1e-6 * noise, "weight_sumsq": 400 + 0 * noise,
        "rms_sum": 4096 * noise, "exp_avg_sq_sum": 1e-4 * decay + 0 * noise, "grad_nonfinite": 0 * noise,
    }  # fmt: skip
    loss = 6 * decay[:, 0] + rng.normal(0, 0.02, steps) + 2
    loss[spike] = 60
    norm = np.sqrt(gradient.sum(axis=1))
    values = {"loss": loss, "loss_reduction": np.ones(steps), "grad_norm": norm, "grad_norm_used": norm}
    return RunLog.from_arrays(
        np.arange(1, steps + 1), values, infos, columns, {"lr": np.full(steps, 1e-3)}, path="runs/long", source="stabkit"
    )


class Page(HTMLParser):
    """The elements, attributes, texts and scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "elements are closed in order"

    def handle_data(self, text: str) -> None:
        inside = self._open[-1] if self._open else ""
        {"script": self.scripts, "style": self.styles}.get(inside, self.words).append(text)

    @property
    def text(self) -> str:
        """All that is to be read, without the pictures."""
        return " ".join(" ".join(self.words).split())

    @property
    def figures(self) -> Any:
        return json.loads(self.scripts[0])
