"""The score as a page in Markdown, from nothing but its JSON."""

from __future__ import annotations

from benchmarks.score.markdown import Data, figure, table
from benchmarks.score.others import baselines, published, remedies
from benchmarks.score.tables import classes, false_alarms, families, rules

__all__ = ["page"]

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
        "## Targets\n\n" + _targets(data), "## By class of event\n\n" + classes(data),
        "## By family\n\n" + families(data), "## By rule\n\n" + rules(data), "## False alarms\n\n" + false_alarms(data),
        "## Against rules of others\n\n" + baselines(data), "## Against published tools\n\n" + published(data),
        "## Remedies\n\n" + remedies(data),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


DEFINITIONS = """\
A finding of warning or error counts at its first step, inside another finding or not. *Detected*: within H steps
before the onset to 5 after it; *predicted*: within H steps before. *Late*: up to 100 steps after, or while it lasts;
neither right nor false. A miss has lead 0. Every finding in a healthy run is a false alarm, with two exceptions that are left
out: one that says that loss or gradient rose (SK201, SK202, SK203, and every baseline) where the data alone made the loss
rise, and one that states a mistake which is there and did no harm. An alarm within 5 steps from one event's onset foretells
no later event. *Right rule*: the finding that holds the first alarm names an accepted rule, of the events detected and of all
events; *right tensor*: the first tensor it blames. Baselines: flags up to 30 steps apart are one alarm."""


def _warning(about: Data) -> str:
    if about["part"] != "tune":
        return ""
    return " These runs were looked at when thresholds were set: the figures are optimistic."


def _verdict(value: float | None, target: float, most: bool = False) -> str:
    if value is None:
        return "not measured"
    miss = value - target if most else target - value
    return "met" if miss <= 1e-12 else f"missed by {miss:.2f}"


Row = tuple[str, str, str, str]


def _targets(data: Data) -> str:
    rows: list[Row] = [row for horizon in (8, 50, 200) for row in _at(data["stabkit"][f"H{horizon}"], horizon)]
    false = data["stabkit"]["false_per_1000_healthy"]
    rows.append(
        ("false alarms per 1,000 healthy steps", "<= 0.2", figure(false, False), _verdict(false["value"], 0.2, True))
    )
    rows += [row for setting in ("at stabkit's rate", "at 1 per 1,000") for row in _best(data, setting)]
    for cls, target in LEADS.items():
        lead = data["classes"].get(cls, {}).get("H200", {}).get("lead", {}).get("median")
        verdict = _verdict(lead and lead["value"], target)
        rows.append((f"median lead over all events, {cls}", f">= {target}", figure(lead, False), verdict))
    healed = (data.get("remedies") or {}).get("healed")
    rows.append(("remedies that heal", ">= 0.8", figure(healed, False), _verdict(healed and healed["value"], 0.8)))
    return table(("what", "target", "measured", "verdict"), rows) + _excluded(data)


def _at(told: Data, horizon: int) -> list[Row]:
    wanted = (("detection recall", "detected", 0.9), ("right rule, of detected events", "right_rule", 0.85),
              ("right rule, of all events", "right_rule_of_all", None), ("right tensor", "right_tensor", 0.85))  # fmt: skip
    rows = []
    for title, key, target in wanted:
        goal = (f">= {target}", _verdict(told[key]["value"], target)) if target else ("", "")
        rows.append((f"{title}, H={horizon}", goal[0], figure(told[key], False), goal[1]))
    chance = told["shifted"]
    if chance["predicted"] is None:
        return rows
    better = told["predicted"]["value"] is not None and chance["predicted_p"] < 0.05
    rows.append((f"prediction above shifted alarms, H={horizon}", f"> {chance['predicted']:.2f}",
                 figure(told["predicted"], False),
                 f"{'met' if better else 'not told from chance'}, p = {chance['predicted_p']:.3f}"))  # fmt: skip
    return rows


def _best(data: Data, setting: str) -> list[Row]:
    """Prediction against the best of the baselines that keep to the budget."""
    equal = {name: told for name, told in data["baselines"].items() if name.endswith(setting) and told["keeps"]}
    mine = data["stabkit"]["H50"]["predicted"]
    if not equal:
        return []
    name = max(equal, key=lambda name: equal[name]["H50"]["predicted"]["value"] or 0)
    best = equal[name]["H50"]["predicted"]["value"] or 0
    ok = mine["value"] is not None and mine["value"] > best
    verdict = "met" if ok else "missed" if mine["value"] is None else f"missed by {best - mine['value']:.2f}"
    who = name.split(" | ")[0]
    return [(f"prediction above every baseline {setting}, H=50", f"> {best:.2f} ({who})", figure(mine, False), verdict)]


def _excluded(data: Data) -> str:
    loud = sorted({name.split(" | ")[0] for name, told in data["baselines"].items() if not told["keeps"]})
    if not loud:
        return ""
    return f"\n\nNot compared, for it cannot be turned down to the budget of false alarms: {', '.join(loud)}."
