"""SK503 permanent-clipping.

What it reports:    A limit on the gradient norm so low that almost every step is cut, and cut deep.
Why it matters:     Clipping is there for the rare step that stands out. Where it cuts them all, every step has the same
                    norm: under SGD the limit is then part of the rate, and the rate that was set means nothing; under Adam
                    the gradients of steps are weighted by the inverse of their norm, and eps is measured against the cut ones.
                    A gradient that later grows tenfold leaves no trace in the update, and none in what the limit lets through.
How it decides:     Of the last 300 clipped or unclipped steps more than 90 % were cut, the middle one of them to a tenth of
                    its norm or less. Steps that a GradScaler skipped do not count.
Known false alarms: Normalised gradient descent on purpose. A language model that is cut at most steps by a factor of two or
                    three is common and healthy: it is not told.
What to try:        A limit above the run's usual norm: median + 3 robust standard deviations of the norms before clipping.
                    Under SGD that raises the step by as much: lower the rate by the same factor.
References:         Pascanu et al. 2013, arXiv 1211.5063: the norm's average over many updates as the guide for the limit.
                    Chen et al. 2020, arXiv 2006.15429: how far gradients cut at every step can lead away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.habit import if_recorded
from stabkit.analyzers.level import skipped_steps
from stabkit.analyzers.series import MAD_TO_SIGMA
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.runlog import RunLog

__all__ = ["RULE", "PermanentClipping", "PermanentClippingThresholds"]

RULE = Rule(
    code="SK503",
    name="permanent-clipping",
    severity=Severity.INFO,
    requires=(("clip_coefficient", "step"), ("clip_max_norm", "step")),
    min_steps=300,
)


@dataclass(frozen=True, kw_only=True)
class PermanentClippingThresholds(Thresholds):
    """When clipping is no exception any more."""

    window: int = 300
    """Steps looked at together."""
    share: float = 0.9
    """Share of them that was cut."""
    depth: float = 0.1
    """What the middle one of them was multiplied by, at most."""


class PermanentClipping:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: PermanentClippingThresholds | None = None) -> None:
        self.thresholds = thresholds or PermanentClippingThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding: where the limit first was the rule."""
        limits = self.thresholds
        coefficient = if_recorded(run, "clip_coefficient")
        rows = np.flatnonzero(np.isfinite(coefficient) & (coefficient > 0) & ~skipped_steps(run))
        if len(rows) < limits.window:
            raise NotApplicable(f"{len(rows)} steps with a limit on the gradient norm; needs {limits.window}")
        recent = sliding_window_view(coefficient[rows], limits.window)
        cut, depth = (recent < 1).mean(axis=1), np.median(recent, axis=1)
        low = (cut > limits.share) & (depth <= limits.depth)
        if not low.any():
            return
        at = int(np.argmax(low))
        begin, row = int(rows[at]), int(rows[at + limits.window - 1])
        given = if_recorded(run, "clip_max_norm")
        limit, norms = float(given[row]), given[rows[at : at + limits.window]] / recent[at]
        usual = float(np.median(norms))
        better = usual + 3 * MAD_TO_SIGMA * float(np.median(np.abs(norms - usual)))
        step = int(run.steps[row])
        yield found(
            RULE,
            message=f"{cut[at]:.0%} of the steps {run.steps[begin]} to {step} were clipped, the middle one to {depth[at]:.2g} "
            "of its norm: the limit sets the size of every step",
            first_step=step,
            last_step=int(run.steps[rows[np.flatnonzero(low)[-1] + limits.window - 1]]),
            event_step=int(run.steps[begin]),
            state=State.ONGOING if low[-1] else State.RECOVERED,
            evidence=(
                Evidence(metric="clip_coefficient", observed=float(depth[at]), expected=limits.depth, step=step,
                         note=f"median of {limits.window} steps"),
                Evidence(metric="clip_max_norm", observed=limit, expected=usual, step=step, note="the run's median norm"),
            ),
            advice=f"Clip at {better:.2g}, the median norm of these steps plus 3 robust standard deviations, instead of "
            f"{limit:.2g}. Without Adam's scaling, divide the rate by {usual / limit:.2g} as well: the limit was part of it.",
            remedy={"clip_norm": better},
        )  # fmt: skip
