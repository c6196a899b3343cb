"""Others beside stabkit as tables: rules on curves, published tools, and what became of the remedies."""

from __future__ import annotations

from benchmarks.score.markdown import Data, figure, table

__all__ = ["baselines", "published", "remedies"]


def baselines(data: Data) -> str:
    """A line per rule and setting."""
    rows = []
    for name, told in {"stabkit": data["stabkit"], **data["baselines"]}.items():
        who, _, setting = name.partition(" | ")
        limit = "none keeps to it" if not told.get("keeps", True) else f"{told['limit']:.3g}" if told.get("limit") else ""
        rows.append((who, setting, limit, figure(told["false_per_1000_healthy"], False), figure(told["H50"]["detected"]),
                     *(figure(told[f"H{h}"]["predicted"]) for h in (8, 50)),
                     figure(told.get("stabkit_more_predicted_H50"))))  # fmt: skip
    sources = {name.split(" | ")[0]: told["source"] for name, told in data["baselines"].items()}
    return "Limits are set on the healthy runs of the tune part.\n\n" + table(
        ("rule", "setting", "limit", "false per 1,000 healthy", "detected, H=50, %", "predicted, H=8, %",
         "predicted, H=50, %", "stabkit predicts more, H=50, points"), rows) + "\n\n" + "\n".join(
        f"- {name}: {source}." for name, source in sources.items())  # fmt: skip


def published(data: Data) -> str:
    """A line per tool."""
    if not data.get("published"):
        return "Not asked (`--no-published`)."
    rows, notes = [], []
    for name, told in data["published"].items():
        if "why_not" in told:
            notes.append(f"- {name}: {told['why_not']}.")
            continue
        if told.get("unread"):
            notes.append(f"- {name} could not read {told['unread']} of the runs; there it counts as silent.")
        rows.append((name, figure(told["sick_alarmed"]), figure(told["healthy_alarmed"]), figure(told["sick_named"]),
                     *(figure(told[f"H{h}"]["detected"]) for h in (8, 50, 200))))  # fmt: skip
    head = ("tool", "sick runs with any alarm, %", "healthy runs with any alarm, %", "alarmed sick runs with a step named, %",
            *(f"events detected, H={h}, %" for h in (8, 50, 200)))  # fmt: skip
    told = "Each is given loss and gradient norm of whole runs as CSV, at its own settings; an alarm is a warning or worse."
    return "\n\n".join([told, table(head, rows), *(["\n".join(notes)] if notes else [])])


def remedies(data: Data) -> str:
    """The shares that healed, and a line per run."""
    told = data.get("remedies")
    if not told:
        return "Not tried (`--remedies`)."
    rows = [("all", "", *_healed(told))]
    rows += [(cls, "", *_healed(part)) for cls, part in told["classes"].items()]
    rows += [("", rule, *_healed(part)) for rule, part in told["rules"].items()]
    runs = [(run["id"], run["class"], run["rule"], run["remedy"], run["outcome"]) for run in told["runs"]]
    return "\n\n".join([
        f"Tried is the remedy of the earliest cause of warning or error that has one in numbers. It heals where the run "
        f"trained again at the same budget has no event and ends within three deviations of the seeds of its healthy twin. "
        f"{len(runs)} of {told['sick']} sick runs; the others hold faults that no number can heal, or were left out. In "
        f"{told['without']} of the {len(runs)} no finding has a remedy: not tried, and not healed of all.",
        table(("class", "rule", "healed of those tried, %", "tried", "healed of all, %", "all"), rows),
        table(("run", "class", "rule", "remedy", "outcome"), runs),
    ])  # fmt: skip


def _healed(told: Data) -> tuple[object, ...]:
    tried, runs = told["healed"], told["healed_of_all"]
    return figure(tried), int(tried["count"]), figure(runs), int(runs["count"])
