"""A comparison as JSON, for machines. Schema 1:

    {"schema": 1,
     "a", "b": {"path", "source", "steps", "first", "last"},
     "common", "first", "last",                        how many steps both have, the first and the last of them
     "verdict",                                        "same", "rounding", "noise", "parted" or "unknown"
     "split": null or {                                where two runs that began alike stopped being the same
         "step", "same_until",                         same_until: null where they differ at the first step both have
         "stage",                                      "weights", "optimizer state", "loss", "gradients" or "updates"
         "same": [str],                                stages of that step that were still the same
         "tensor_step", "tensors": [str], "compared",  which tensors differ in that stage, the furthest first
         "size", "settings": [str]},
     "partings": [{"metric", "tensor", "step", "until", "a", "b", "times", "p"}],   beyond noise, the earliest first
     "looked_at": [str],
     "settings": [{"name", "a", "b", "step"}],
     "notes": [str]}

Numbers that are not finite and keys that are added: as in `stabkit.report.json`.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from stabkit.compare.result import Comparison
from stabkit.report.json import encodable

__all__ = ["SCHEMA", "render"]

SCHEMA = 1


def render(found: Comparison) -> str:
    """The document as text, without a newline at its end."""
    data = {"schema": SCHEMA, **asdict(found), "verdict": str(found.verdict)}
    return json.dumps(encodable(data), indent=2, allow_nan=False).replace("\x7f", "\\u007f")
