"""The score as a picture: plain SVG that reads on white and on black."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

__all__ = ["picture"]

STYLE = """text{font:13px sans-serif;fill:#24292f}.d{fill:#9aa7b4}.p{fill:#1f6feb}.g{stroke:#8c959f;stroke-width:.5}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.d{fill:#59636e}.p{fill:#58a6ff}}"""


def picture(data: Mapping[str, Any]) -> str:
    """Bars of detection and prediction recall, H = 50, of stabkit and of the baselines tuned to the same false alarms."""
    rows = {"stabkit": data["stabkit"]}
    rows |= {k.split(" | ")[0]: v for k, v in data["baselines"].items() if k.endswith("at stabkit's rate") and v["keeps"]}
    left, width, row = 210, 400, 30
    height = 60 + row * len(rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {height}" role="img">',
        f"<style>{STYLE}</style>",
        f'<text x="{left}" y="18">events detected (grey) and predicted (blue), H = 50, equal false alarms</text>',
    ]
    for i in range(6):
        x = left + width * i / 5
        out.append(f'<line class="g" x1="{x}" x2="{x}" y1="28" y2="{height - 24}"/>')
        out.append(f'<text x="{x}" y="{height - 8}" text-anchor="middle">{20 * i} %</text>')
    for i, (name, told) in enumerate(rows.items()):
        y = 32 + row * i
        out.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>')
        for key, css, top in (("detected", "d", 0), ("predicted", "p", 11)):
            share = told["H50"][key]["value"] or 0
            out.append(f'<rect class="{css}" x="{left}" y="{y + top}" width="{width * share:.1f}" height="10"/>')
    return "\n".join([*out, "</svg>\n"])
