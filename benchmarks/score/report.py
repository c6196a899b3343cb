"""The score as a page in Markdown, from nothing but its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["page"]

Data = Mapping[str, Any]
LEADS = {"stale": 2, "decoupled": 8, "growth": 20}


def page(data: Data) -> str:
    """All tables."""
    about = data["about"]
    parts = [
        f"# How often the verdicts are right\n\n{about['date']}, {about['machine']}, {about['versions']}, "
        f"commit {about['commit']}. `{about['command']}`\n\n"
        f"Part `{about['part']}`: {about['runs']} runs, {about['healthy']} of them healthy "
        f"({about['healthy_steps']:,} steps), {about['events']} events. Intervals: 95 %, bootstrap over runs.{_warning(about)}",
        "![Recall at equal false alarms](accuracy.svg)", DEFINITIONS,
        "## Targets\n\n" + _targets(data), "## By class of event\n\n" + _classes(data),
        "## By rule\n\nRecall: of the events that the rule may name.\n\n" + _rules(data),
        "## Against others\n\n" + _others(data), _remedies(data),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


DEFINITIONS = """\
A finding of warning or error counts at its first step, inside another finding or not. *Detected*: within H steps
before the onset to 5 after it; *predicted*: within H steps before. *Late*: up to 100 steps after, or while it lasts;
neither right nor false. A miss has lead 0. Every finding in a healthy run is a false alarm.
An alarm within 5 steps from one event's onset
foretells no later event. *Right rule*: the finding that holds the first alarm names an accepted rule, of the events detected;
*right tensor*: the first tensor it blames. Baselines: flags up to 30 steps apart are one alarm."""


def _warning(about: Data) -> str:
    if about["part"] != "tune":
        return ""
    return " These runs were looked at when thresholds were set: the figures are optimistic."


def _figure(data: Data | None, percent: bool = True) -> str:
    if not data or data["value"] is None:
        return "–"
    scale, digits = (100, 0) if percent else (1, 2)
    numbers = [scale * data[key] if data[key] is not None else float("nan") for key in ("value", "low", "high")]
    return "{0:.{3}f} ({1:.{3}f}–{2:.{3}f})".format(*numbers, digits)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', ',') for cell in line)} |" for line in lines)


def _verdict(value: float | None, target: float, most: bool = False) -> str:
    if value is None:
        return "not measured"
    miss = value - target if most else target - value
    return "met" if miss <= 1e-12 else f"missed by {miss:.2f}"


def _targets(data: Data) -> str:
    own, rows = data["stabkit"], []
    for horizon in (8, 50, 200):
        at = own[f"H{horizon}"]
        for title, key, target in (("detection recall", "detected", 0.9), ("right rule", "right_rule", 0.85),
                                   ("right tensor", "right_tensor", 0.85)):  # fmt: skip
            rows.append((f"{title}, H={horizon}", f">= {target}", _figure(at[key], False), _verdict(at[key]["value"], target)))
        chance = at["shifted"]
        better = at["predicted"]["value"] is not None and chance["predicted_p"] < 0.05
        rows.append((f"prediction above shifted alarms, H={horizon}", f"> {chance['predicted']:.2f}",
                     _figure(at["predicted"], False),
                     f"{'met' if better else 'not told from chance'}, p = {chance['predicted_p']:.3f}"))  # fmt: skip
    false = own["false_per_1000_healthy"]
    rows.append(("false alarms per 1,000 healthy steps", "<= 0.2", _figure(false, False), _verdict(false["value"], 0.2, True)))
    equal = {name: told for name, told in data["baselines"].items() if name.endswith("at stabkit's rate")}
    if equal:
        name = max(equal, key=lambda name: equal[name]["H50"]["predicted"]["value"] or 0)
        best = equal[name]["H50"]["predicted"]["value"] or 0
        value = own["H50"]["predicted"]["value"]
        ok = value is not None and value > best
        rows.append(("prediction above every baseline, H=50", f"> {best:.2f} ({name.split(' | ')[0]})",
                     _figure(own["H50"]["predicted"], False), "met" if ok else "missed" if value is None else
                     f"missed by {best - value:.2f}"))  # fmt: skip
    for cls, target in LEADS.items():
        lead = data["classes"].get(cls, {}).get("H200", {}).get("lead", {}).get("median")
        rows.append((f"median lead over all events, {cls}", f">= {target}", _figure(lead, False),
                     _verdict(lead and lead["value"], target)))  # fmt: skip
    healed = data.get("remedies", {}).get("healed")
    rows.append(("remedies that heal", ">= 0.8", _figure(healed, False), _verdict(healed and healed["value"], 0.8)))
    return _table(("what", "target", "measured", "verdict"), rows)


def _classes(data: Data) -> str:
    rows = []
    for cls, told in {**data["classes"], "all": data["stabkit"]}.items():
        lead = told["H200"]["lead"]
        rows.append((
            cls, int(told["H50"]["detected"]["count"]), *(_figure(told[f"H{h}"]["detected"]) for h in (8, 50, 200)),
            *(_figure(told[f"H{h}"]["predicted"]) for h in (8, 50, 200)), _figure(told["H50"]["late"]),
            "{} ({}–{})".format(*("–" if lead[q]["value"] is None else f"{lead[q]['value']:.0f}"
                                  for q in ("median", "lower", "upper"))),
            _figure(told["H50"]["right_rule"]), _figure(told["H50"]["right_tensor"]),
        ))  # fmt: skip
    head = ("class", "events", *(f"detected, H={h}, %" for h in (8, 50, 200)), *(f"predicted, H={h}, %" for h in (8, 50, 200)),
            "late, %", "lead, H=200: median (quartiles)", "right rule, H=50, %", "right tensor, H=50, %")  # fmt: skip
    own = data["stabkit"]
    return _table(head, rows) + (
        f"\n\nFalse alarms per 1,000 healthy steps: {_figure(own['false_per_1000_healthy'], False)}; merged over 30 steps: "
        f"{_figure(own['false_merged_per_1000_healthy'], False)}. Healthy runs with any alarm: "
        f"{_figure(own['healthy_runs_with_alarm'])} %. Before the event in sick runs, H=50: "
        f"{_figure(own['H50']['false_per_1000_before'], False)} per 1,000 steps."
    )


def _rules(data: Data) -> str:
    rows = []
    for rule, told in data["rules"].items():
        at, trust = told["H50"], data["confidence"].get(rule)
        shown = f"{trust['precision']:.2f} ({trust['low']:.2f}–{trust['high']:.2f})" if trust else "fewer than 5 runs"
        rows.append((rule, int(at["detected"]["count"]), told["alarms"], _figure(at["detected"]), _figure(at["predicted"]),
                     _figure(at["precision"]), _figure(told["false_per_1000_healthy"], False), shown))  # fmt: skip
    return _table(("rule", "events", "alarms", "detected, H=50, %", "predicted, H=50, %", "precision, H=50, %",
                   "false per 1,000 healthy", "confidence, H=200"), rows)  # fmt: skip


def _others(data: Data) -> str:
    rows = []
    for name, told in {"stabkit": data["stabkit"], **data["baselines"], **data.get("published", {})}.items():
        if "why_not" in told:
            rows.append((name, "", told["why_not"], *[""] * 5))
            continue
        who, _, setting = name.partition(" | ")
        limit = "" if told.get("limit") is None else f"{told['limit']:.3g}"
        rows.append((who, setting, limit, _figure(told["false_per_1000_healthy"], False), _figure(told["H50"]["detected"]),
                     *(_figure(told[f"H{h}"]["predicted"]) for h in (8, 50)),
                     _figure(told.get("stabkit_more_predicted_H50"))))  # fmt: skip
    sources = {name.split(" | ")[0]: told.get("source", "") for name, told in data["baselines"].items()}
    return _table(("rule", "setting", "limit", "false per 1,000 healthy", "detected, H=50, %", "predicted, H=8, %",
                   "predicted, H=50, %", "stabkit predicts more, H=50, points"), rows) + "\n\n" + "\n".join(
        f"- {name}: {source}." for name, source in sources.items())  # fmt: skip


def _remedies(data: Data) -> str:
    told = data.get("remedies")
    if not told:
        return "## Remedies\n\nNot tried (`--remedies`)."
    rows = [(run["id"], run["rule"], run["remedy"], run["outcome"]) for run in told["runs"]]
    return (f"## Remedies\n\nHealed: {_figure(told['healed'])} % of the {len(rows)} runs trained again; {told['silent']} "
            "further sick runs got no remedy in numbers.\n\n") + _table(("run", "rule", "remedy", "outcome"), rows)  # fmt: skip
