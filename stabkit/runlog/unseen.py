"""Takes back what a part of the recorder would have seen, where that part was not there: a count of nothing is no zero.

Where torch lacks a function that is patched, or a part failed and was given up, the log says so ("unseen"), and from that step
on the columns of that part hold what a step without any such call would. A rule must not take that for a loop that never clips.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from stabkit.runlog.stream import Stream

__all__ = ["without_unseen"]

_CLIP = ("clip_max_norm", "clip_value", "clip_coefficient", "clip_scale")
_CLIPS = ("clips_before_backward", "clips_between_backwards", "clips_after_backward")
_SCHEDULE = tuple(f"scheduler_steps_{when}_backward{s}" for when, s in (("before", ""), ("between", "s"), ("after", "")))
_LOSS = ("loss", "loss_sum", "loss_reduction", "loss_kinds", "undivided_losses", "backward_count", "dropped_backwards")
_ORDER = (*_CLIPS, *_SCHEDULE, "kept_gradients")  # counted as before or after a backward
_SEEN_BY: Mapping[str, tuple[str, ...]] = {
    "clip": (*_CLIP, *_CLIPS),
    "schedule": _SCHEDULE,
    "scaler": ("loss_scale", "clip_scale", "step_outside_scaler", "scaler_updates"),
    "zeroing": ("kept_gradients",),
    "loss": (*_LOSS, *_ORDER, "grad_norm"),
}
"""The step metrics that rest on each part of the recorder."""


def without_unseen(stream: Stream, events: Iterable[Mapping[str, Any]]) -> Stream:
    """The stream with NaN for what nobody could have seen, and the reason for whoever asks."""
    noted = [event for event in events if event.get("event") == "unseen" and isinstance(event.get("what"), str)]
    if not noted:
        return stream
    values, missing = dict(stream.step_values), dict(stream.missing)
    for event in noted:
        part, step = event["what"], event.get("step")
        since = step if isinstance(step, int) and "why" in event else -math.inf
        for name in _SEEN_BY.get(part, ()):
            if name in values:
                values[name] = np.where(stream.steps > since, np.nan, values[name])
                missing[name] = _why(part, event)
    return replace(stream, step_values=values, missing=missing)


def _why(part: str, event: Mapping[str, Any]) -> str:
    if "why" in event:
        return f"what sees this part of a loop ({part}) failed and was given up: {event['why']}"
    return f"torch {event.get('torch')} has nothing to see this part of a loop by ({part})"
