"""A diagnosis on the terminal: first one line that says it all, then every finding, then what could not be judged.

Made to be read at 3 a.m.: the worst first, each with its numbers, the checkpoint to go back to and what to change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from stabkit.finding import Diagnosis, Finding, Severity, Status
from stabkit.report.sparkline import sparkline
from stabkit.report.terminal import columns, hang, heading, show
from stabkit.report.verdict import amounts, batches, by_reason, looked, no_occasion, restart, when
from stabkit.report.words import count, listed, number, printable, share, shortened
from stabkit.runlog import RunLog

__all__ = ["report", "show_finding", "summary", "tally"]

_STYLE = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold cyan"}
_LABEL = 11
"""Width of the labels in front of advice and the like, their indentation included."""
_FINDINGS_SHOWN, _EVIDENCE_SHOWN, _CONSEQUENCES_SHOWN, _TENSORS_SHOWN = 3, 8, 3, 4


def report(diagnosis: Diagnosis, console: Console, left_out: int = 0, run: RunLog | None = None) -> None:
    """Print a diagnosis.

    Args:
        diagnosis: What to print.
        console: Where to.
        left_out: How many rules of the catalogue were not asked, for the summary of a clear run.
        run: The run itself, for a sparkline of its loss; None leaves that out.
    """
    # A terminal breaks a long line by itself; anything else (a file, grep) wants the summary in one piece.
    console.print(summary(diagnosis, left_out), soft_wrap=not console.is_terminal)
    if run is not None:
        sparkline(run, diagnosis.findings, console)
    by_rule: dict[str, list[Finding]] = {}
    for finding in diagnosis.findings:  # the worst first, and so are the rules
        by_rule.setdefault(finding.rule, []).append(finding)
    for findings in by_rule.values():
        _findings_of_one_rule(findings, console)
    _could_not_look(diagnosis, console)
    _no_occasion(diagnosis, console)
    _notes(diagnosis, console)
    catalogued = [code for code in by_rule if re.fullmatch(r"SK\d+", code)]  # a rule of the user's own has no page here
    if catalogued:
        console.print()
        code = catalogued[0]
        hang(console, Text(f"How {code} decides and when it is wrong: stabkit explain {code}", "dim"), indent=0)


def summary(diagnosis: Diagnosis, left_out: int = 0) -> Text:
    """The one line: what was found and where, or how much of the run could be looked at."""
    line = Text.assemble((printable(diagnosis.path or "this run"), "bold"), ": ")
    steps = count(diagnosis.steps, "step")
    if diagnosis.findings:
        worst = diagnosis.findings[0]
        line.append(amounts(diagnosis.findings), _STYLE[worst.severity])
        line.append(f" in {steps} — {printable(worst.name)} at step {worst.first_step}")
        return line.append(f" ({shortened(printable(worst.tensors[0]))})" if worst.tensors else "")

    able, asked = looked(diagnosis.outcomes)
    missed, others = asked - able, len({outcome.rule for outcome in diagnosis.outcomes}) - asked
    line.append(*(("clear", "bold green") if able else ("not judged", "bold yellow")))
    line.append(f" — {able or 'none'} of {count(asked, 'rule')} looked")
    line.append(f"; {missed} could not (see below)" if missed and able else "")
    line.append(f"; {others} not about this run" if others else "")
    line.append(f"; {left_out} not asked" if left_out else "")
    line.append(f", {steps}")
    return line.append("; see the notes on the log" if diagnosis.notes else "")


def _findings_of_one_rule(findings: Sequence[Finding], console: Console) -> None:
    said: set[str] = set()
    for finding in findings[:_FINDINGS_SHOWN]:
        _finding(finding, console, said)
    more = findings[_FINDINGS_SHOWN:]
    if more:
        where = listed([str(finding.first_step) for finding in more], 6)
        what = f"{count(len(more), 'more finding')} of {printable(more[0].name)}: at step{'s'[: len(more) > 1]} {where}"
        console.print()
        hang(console, Text(f"and {what} (--format json has them all)", "dim"))


def show_finding(finding: Finding, console: Console) -> None:
    """Print one finding by itself, as the report would."""
    _finding(finding, console, set())


def _finding(finding: Finding, console: Console, said: set[str]) -> None:
    """Print a finding; advice that is already `said` of the same rule is not repeated."""
    style = _STYLE[finding.severity]
    console.print()
    title = Text.assemble((f"{printable(finding.rule)} {printable(finding.name)}", "bold"), f"  {when(finding)}")
    severity = f"{finding.severity} "
    hang(console, title, Text(severity, style), indent=len(severity) + 1)
    hang(console, printable(finding.message))
    if finding.evidence:
        console.print()
        _evidence(finding, console)
        console.print()
    if finding.tensors:
        _labelled("where", listed([shortened(printable(name)) for name in finding.tensors], _TENSORS_SHOWN), console)
    if finding.batches:
        _labelled("batch", printable(batches(finding)), console)
    if finding.last_good_step is not None and finding.severity > Severity.INFO:  # information asks for no restart
        _labelled("restart", restart(finding.last_good_step), console)
    if finding.advice:
        again = finding.advice in said
        _labelled("try", "as above" if again else Text(printable(finding.advice), "bold"), console)
    if finding.confidence and not said:  # it is the rule's, not the finding's
        right, low, high = finding.confidence
        trust = f"right in {share(right)} of the cases it was measured on ({share(low)} to {share(high)})"
        _labelled("trust", trust, console)
    _consequences(finding.consequences, console, _LABEL)
    said.add(finding.advice)


def _labelled(label: str, text: Text | str, console: Console) -> None:
    hang(console, text, Text(f"  {label}", "dim"), indent=_LABEL)


def _evidence(finding: Finding, console: Console) -> None:
    shown = finding.evidence[:_EVIDENCE_SHOWN]
    known_from_above = {item.tensor for item in shown} <= {None, *finding.tensors[:1]}
    cells = {
        "quantity": [printable(item.metric) for item in shown],
        "step": ["" if item.step is None else str(item.step) for item in shown],
        "observed": [number(item.observed) for item in shown],
        "expected": [number(item.expected) for item in shown],
        "tensor": ["" if known_from_above else shortened(printable(item.tensor or "")) for item in shown],
        "note": [printable(item.note) for item in shown],
    }
    filled = {title: column for title, column in cells.items() if any(column)}
    table = columns(*filled, right="step observed expected")
    for row in zip(*filled.values(), strict=True):
        table.add_row(*(Text(cell) for cell in row))
    show(console, table)
    if len(finding.evidence) > len(shown):
        hang(console, Text(f"and {count(len(finding.evidence) - len(shown), 'more number')}", "dim"))


def _consequences(consequences: Sequence[Finding], console: Console, indent: int) -> None:
    """What a finding led to, a line each; what that led to stands further to the right. Errors are always among those shown."""
    shown = [each for i, each in enumerate(consequences) if i < _CONSEQUENCES_SHOWN or _holds_error(each)]
    for i, finding in enumerate(shown):
        label = Text("  led to", "dim") if i == 0 and indent == _LABEL else ""
        line = Text(f"{printable(finding.rule)} {printable(finding.name)}", _STYLE[finding.severity], end="")
        line = Text.assemble(line, f" at step {finding.first_step}: {printable(finding.message)}")
        hang(console, line, label, indent)
        _consequences(finding.consequences, console, indent + 2)
    if len(consequences) > len(shown):
        hang(console, Text(f"and {len(consequences) - len(shown)} more", "dim"), indent=indent)


def _holds_error(finding: Finding) -> bool:
    return finding.severity is Severity.ERROR or any(_holds_error(each) for each in finding.consequences)


def _could_not_look(diagnosis: Diagnosis, console: Console) -> None:
    titles = {
        Status.NOT_APPLICABLE: ("Could not look", "bold"),
        Status.FAILED: ("Failed: a fault of stabkit, not of your run. Please report it", "bold red"),
    }
    for status, (title, style) in titles.items():
        reasons = by_reason(diagnosis.outcomes, status)
        if reasons:
            heading(console, title, style)
        for reason, outcomes in reasons.items():
            rules = ", ".join(f"{printable(outcome.rule)} {printable(outcome.name)}" for outcome in outcomes)
            _rules_and_reason(rules, printable(reason), console)


def _no_occasion(diagnosis: Diagnosis, console: Console) -> None:
    """The rules that are about something this run has not, in one paragraph."""
    codes = [printable(outcome.rule) for outcome in no_occasion(diagnosis.outcomes)]
    if codes:
        heading(console, "Not about this run")
        hang(console, Text(", ".join(codes), "dim"))


def _rules_and_reason(rules: str, reason: str, console: Console) -> None:
    line = Text.assemble(rules, (f": {reason}", "dim"))
    if line.cell_len + 2 <= console.width:
        hang(console, line)
    else:
        hang(console, rules)
        hang(console, Text(reason, "dim"), indent=4)


def _notes(diagnosis: Diagnosis, console: Console) -> None:
    if diagnosis.notes:
        heading(console, "Notes on the log")
    for note in diagnosis.notes:
        hang(console, printable(note), "  - ", indent=4)


def tally(diagnoses: Sequence[Diagnosis], paths: int, console: Console) -> None:
    """Print the last line after several runs."""
    ill = sum(bool(diagnosis.findings) for diagnosis in diagnoses)
    unread = f", {paths - len(diagnoses)} could not be read" if paths > len(diagnoses) else ""
    line = f"{paths} paths: findings in {ill}, nothing found in {len(diagnoses) - ill}{unread}"
    console.print()
    console.print(Text(line, "bold"), soft_wrap=True)
