"""stabkit's own figures as tables: by class of event, by family of model, by rule, and where its false alarms were."""

from __future__ import annotations

from benchmarks.score.markdown import Data, figure, table

__all__ = ["classes", "false_alarms", "families", "rules"]

HORIZONS = (8, 50, 200)


def classes(data: Data) -> str:
    """A line per class."""
    rows = []
    for cls, told in {**data["classes"], "all": data["stabkit"]}.items():
        lead = told["H200"]["lead"]
        rows.append((
            cls, int(told["H50"]["detected"]["count"]), *(figure(told[f"H{h}"]["detected"]) for h in HORIZONS),
            *(figure(told[f"H{h}"]["predicted"]) for h in HORIZONS), figure(told["H50"]["late"]),
            "{} ({}–{})".format(*("–" if lead[q]["value"] is None else f"{lead[q]['value']:.0f}"
                                  for q in ("median", "lower", "upper"))),
            figure(told["H50"]["right_rule"]), figure(told["H50"]["right_rule_of_all"]), figure(told["H50"]["right_tensor"]),
        ))  # fmt: skip
    head = ("class", "events", *(f"detected, H={h}, %" for h in HORIZONS), *(f"predicted, H={h}, %" for h in HORIZONS),
            "late, %", "lead, H=200: median (quartiles)", "right rule, H=50, %", "of all events, %",
            "right tensor, H=50, %")  # fmt: skip
    return table(head, rows)


def families(data: Data) -> str:
    """A line per family of models."""
    rows = [
        (family, told["runs"], int(told["H50"]["detected"]["count"]), *(figure(told[f"H{h}"]["detected"]) for h in HORIZONS),
         figure(told["H50"]["predicted"]), figure(told["H50"]["right_rule_of_all"]),
         figure(told["false_per_1000_healthy"], False), figure(told["healthy_runs_with_alarm"]))
        for family, told in data["families"].items()
    ]  # fmt: skip
    head = ("family", "runs", "events", *(f"detected, H={h}, %" for h in HORIZONS), "predicted, H=50, %",
            "right rule of all events, H=50, %", "false per 1,000 healthy", "healthy runs with any alarm, %")  # fmt: skip
    return table(head, rows)


def rules(data: Data) -> str:
    """A line per rule that spoke or should have."""
    rows = []
    for rule, told in data["rules"].items():
        at, trust = told["H50"], data["confidence"].get(rule)
        shown = f"{trust['precision']:.2f} ({trust['low']:.2f}–{trust['high']:.2f})" if trust else "fewer than 5 runs"
        rows.append((rule, int(at["detected"]["count"]), told["alarms"], figure(at["detected"]), figure(at["predicted"]),
                     figure(at["precision"]), figure(told["false_per_1000_healthy"], False), shown))  # fmt: skip
    return "Recall: of the events that the rule may name. " + CONFIDENCE + "\n\n" + table(
        ("rule", "events", "alarms", "detected, H=50, %", "predicted, H=50, %", "precision of any event, H=50, %",
         "false per 1,000 healthy", "confidence"), rows)  # fmt: skip


CONFIDENCE = (
    "Confidence: the share of its alarms with an event that follows within 200 steps, begins or goes on and that the rule may "
    "name; SK201, SK202, SK203 and SK301 only describe and may name any. An alarm in a healthy run is wrong. Rules on a "
    "mistake in the loop are held to the same: right is not that the mistake is there, but that it did harm."
)


def false_alarms(data: Data) -> str:
    """How many there were, and of which rule in which family."""
    own = data["stabkit"]
    names = list(data["families"])
    loud = {rule: told["false"] for rule, told in data["rules"].items() if told["false"]["alarms"] or told["false"]["before"]}
    rows = [
        (rule, false["alarms"], false["runs"], false["hard_negatives"],
         *(false["families"].get(name, 0) for name in names), false["before"])
        for rule, false in sorted(loud.items(), key=lambda each: -each[1]["alarms"])
    ]  # fmt: skip
    head = ("rule", "in healthy runs", "runs", "of them in hard negatives", *names, "before the event in sick runs, H=50")
    return (
        f"Per 1,000 healthy steps: {figure(own['false_per_1000_healthy'], False)}; merged over 30 steps: "
        f"{figure(own['false_merged_per_1000_healthy'], False)}. Healthy runs with any alarm: "
        f"{figure(own['healthy_runs_with_alarm'])} %. Before the event in sick runs, H=50: "
        f"{figure(own['H50']['false_per_1000_before'], False)} per 1,000 steps.\n\n" + table(head, rows)
    )
