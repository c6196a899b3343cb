"""The gradient norm of a run, and the limit that its own past suggests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stabkit.analyzers.series import MAD_TO_SIGMA
from stabkit.runlog import RunLog, Series

__all__ = ["gradient_norm", "usual_clip"]

LEAST = 20
WINDOW = 100


def gradient_norm(run: RunLog, least: int = LEAST) -> Series:
    """The norm before clipping; the used one where the other is unknown in all of the first `least` steps, never judged."""
    used = run.series("grad_norm_used")
    if not run.has("grad_norm") or np.isnan(run.series("grad_norm").values[:least]).all():
        return used
    norm = run.series("grad_norm")
    known = np.logical_or.accumulate(~np.isnan(used.values))
    # A gradient written to by hand has no norm from before; where nothing clipped it either, it is what the step used.
    clipped = run.has("clip_coefficient") and ~np.isnan(run.series("clip_coefficient").values)
    values = np.where(np.isnan(norm.values) & ~np.asarray(clipped), used.values, norm.values)
    return replace(norm, values=np.where(known, values, np.nan))


def usual_clip(run: RunLog, step: int, window: int = WINDOW) -> float | None:
    """Median + 3 * 1.4826 * MAD of the norms of the steps before `step`: the limit to clip at; None where none is known."""
    if not run.has("grad_norm_used"):
        return None
    norm = gradient_norm(run)
    before = int(np.searchsorted(norm.steps, step))
    recent = norm.values[max(0, before - window) : before]
    recent = recent[np.isfinite(recent)]
    if not len(recent):
        return None
    middle = float(np.median(recent))
    return middle + 3 * MAD_TO_SIGMA * float(np.median(np.abs(recent - middle)))
