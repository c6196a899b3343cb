"""What a run of the corpus is made of: plain data, from which the training follows bit for bit."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

__all__ = ["Disturbance", "Recipe"]

VERSION = 2
"""Raised when the same recipe would train otherwise than before: models, data or the loop were changed."""


LASTING = ("shift", "hard", "labels", "heavy", "mixed")
"""Disturbances after which a loss is another loss: their run is compared with one on the same data."""


@dataclass(frozen=True)
class Disturbance:
    """Something that happens to a run from one step to another.

    Attributes:
        kind: "rate" (the rate times `size`), "loss" (the loss times `size`), "gradient" (the gradients times `size`, after
            the backward pass), "labels" (a share `size` of the targets drawn at random), "heavy" (a share of
            the targets that few batches have much of, at most `size`), "mixed" (the same share `size` in a third of the
            batches), "noise" (inputs and targets at
            random), "shift" (another distribution), "hard" (harder examples), "rare" (values never met before), "nan" (a
            gradient of 0 / 0), "skip" (another batch, undisturbed).
        first: The first step.
        last: The last step.
        size: How much.
        every: Only each `every`-th step of them.
    """

    kind: str
    first: int
    last: int
    size: float = 1.0
    every: int = 1

    def at(self, step: int) -> bool:
        """Whether it happens at a step."""
        return self.first <= step <= self.last and (step - self.first) % self.every == 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run.

    Attributes:
        id: Its name, and that of its folder.
        part: "tune" or "score".
        family: A name of `families.FAMILIES`.
        base: The healthy setting it departs from; its references give the seed deviation.
        seed: Of initialisation and data.
        steps: Optimizer steps.
        fault: What was done to it, a name of `faults.FAULTS`; None for a reference.
        size: How much of the fault.
        twin: The id of the run it is compared with; None for a reference.
        lr: The peak rate.
        peak: No rate is higher, whatever the schedule says; 0 for no limit.
        warmup: Steps of linear warmup; 0 starts at the peak.
        schedule: After the warmup: "constant", "cosine" (to a tenth), or "restarts" (cosine, `period` steps each).
        period: Steps of a cosine between two restarts; steps of an epoch where the data has epochs.
        beta2: Adam's beta2.
        eps: Adam's eps.
        weight_decay: Of every tensor but those of `decay`.
        decay: Weight decay of tensors of their own; a negative one makes them grow.
        clip: The limit of `clip_grad_norm_`; 0 does not clip.
        precision: "float32", "float16" or "bfloat16" (autocast), "bfloat16-weights" (no float32 copy of the weights).
        init_scale: The GradScaler's first scale.
        growth_interval: Its steps between two doublings.
        unscale: Whether the gradients are unscaled before they are clipped.
        init_factor: What the initial weights of the tensors named are multiplied by; "" names all matrices.
        resume: The step after which the run is stopped and resumed; 0 never.
        keep_moments: Whether the optimizer's state survives that.
        options: Of the family.
        disturbances: What happens on the way.
    """

    id: str = ""
    part: str = "tune"
    family: str
    base: str
    seed: int = 0
    steps: int
    fault: str | None = None
    size: float = 0.0
    twin: str | None = None
    lr: float
    peak: float = 0.0
    warmup: int = 0
    schedule: str = "constant"
    period: int = 0
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: Mapping[str, float] = field(default_factory=dict)
    clip: float = 0.0
    precision: str = "float32"
    init_scale: float = 65536.0
    growth_interval: int = 2000
    unscale: bool = True
    init_factor: Mapping[str, float] = field(default_factory=dict)
    resume: int = 0
    keep_moments: bool = True
    options: Mapping[str, float] = field(default_factory=dict)
    disturbances: tuple[Disturbance, ...] = ()

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 1."""
        rate = self._schedule(step) * math.prod(d.size for d in self.disturbances if d.kind == "rate" and d.at(step))
        return min(rate, self.peak) if self.peak else rate

    def _schedule(self, step: int) -> float:
        if step <= self.warmup:
            return self.lr * step / self.warmup
        since, span = step - self.warmup, max(1, self.steps - self.warmup)
        if self.schedule == "restarts":
            since, span = (since - 1) % self.period, self.period
        if self.schedule == "constant":
            return self.lr
        return self.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * since / span)))

    def now(self, kind: str, step: int) -> Disturbance | None:
        """The disturbance of a kind at a step; a skipped batch has none of those of the data."""
        if kind != "skip" and kind not in ("rate", "gradient") and self.now("skip", step):
            return None
        return next((d for d in self.disturbances if d.kind == kind and d.at(step)), None)

    @property
    def data_changes(self) -> tuple[int, ...]:
        """The steps from which the examples are of another kind."""
        return tuple(d.first for d in self.disturbances if d.kind in LASTING)

    @property
    def restless(self) -> bool:
        """Whether each batch may be of another kind, so that a high loss means nothing by itself."""
        return any(d.kind in ("heavy", "mixed") for d in self.disturbances)

    @property
    def injection(self) -> int | None:
        """The step from which the run is disturbed; for information."""
        firsts = [d.first for d in self.disturbances] + ([self.resume + 1] if self.resume else [])
        return min(firsts) if firsts else 1 if self.fault else None

    @property
    def hash(self) -> str:
        """Changes with anything that the training depends on."""
        return hashlib.sha256(json.dumps([VERSION, asdict(self)], sort_keys=True).encode()).hexdigest()[:16]
