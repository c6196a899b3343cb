"""What an analysis says: plain frozen data, with no way to compute or to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum

__all__ = ["REMEDIES", "Diagnosis", "Evidence", "Finding", "Outcome", "Severity", "State", "Status"]

REMEDIES: Mapping[str, str] = {
    "peak_lr": "the highest rate of the run",
    "lr_factor": "what every rate from `last_good_step` on is multiplied by",
    "warmup_steps": "steps of linear warmup",
    "beta2": "Adam's beta2",
    "eps": "Adam's eps",
    "clip_norm": "the limit of clip_grad_norm_",
    "weight_decay": "weight decay of the tensors named",
    "init_factor": "what the initial weights of the tensors named are multiplied by",
    "qk_norm": "1: normalise queries and keys",
    "z_loss": "coefficient of the squared log-sum-exp of the logits added to the loss",
    "skip_batches": "1: leave out the batches of the steps from `first_step` to `last_step`",
    "master_weights": "1: keep the weights in float32",
    "bfloat16": "1: autocast to bfloat16 instead of float16",
    "restore_optimizer": "1: resume with the optimizer's saved state",
    "unscale_first": "1: scaler.unscale_(optimizer) before the clipping",
}
"""What a remedy can change, by name. Machines read it; people read the advice, which says the same."""


class Severity(IntEnum):
    """How bad a finding is; the order is the order of harm."""

    INFO = 1
    WARNING = 2
    ERROR = 3

    def __str__(self) -> str:
        return self.name.lower()


class Status(Enum):
    """The four answers a rule can get."""

    FOUND = "found"
    CLEAR = "clear"
    NOT_APPLICABLE = "not-applicable"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


class State(Enum):
    """Whether the trouble lasted to the end of the log."""

    ONGOING = "ongoing"
    RECOVERED = "recovered"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One number behind a finding.

    Attributes:
        metric: A name of the vocabulary (`stabkit.metric`), or a derived quantity named in the rule's page.
        observed: The value seen, in the metric's unit.
        expected: What it was held against: the rule's limit or the recent level.
        step: The step at which it was observed.
        tensor: The tensor it belongs to; None for a quantity of the whole step.
        note: Where the expectation comes from, in a few words.
    """

    metric: str
    observed: float
    expected: float | None = None
    step: int | None = None
    tensor: str | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One cause of trouble in one run.

    Attributes:
        rule: The rule's code, such as "SK101".
        name: The rule's name, such as "missing-warmup".
        severity: How bad it is.
        message: One line with numbers, step and tensor.
        first_step: The step at which the rule fires, knowing nothing of what follows.
        last_step: The last step to which it applies.
        event_step: The step of the worst harm, where there is one.
        last_good_step: The last step before the trouble touched the weights: restart from a checkpoint at or before it.
        state: Ongoing at the end of the log, or recovered.
        tensors: The tensors concerned, the culprit first.
        evidence: The numbers.
        advice: What to change, with a value.
        remedy: The first thing the advice says, for machines: names of `REMEDIES` and their values; empty where it is not a
            number that a run could simply be started with.
        confidence: (precision, low, high) as measured for this rule; None until it has been measured.
        batches: What the user called the batches of `first_step` and `event_step`, by step, where it was told.
        consequences: Findings of other rules that this one explains.
    """

    rule: str
    name: str
    severity: Severity
    message: str
    first_step: int
    last_step: int
    event_step: int | None = None
    last_good_step: int | None = None
    state: State = State.ONGOING
    tensors: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    advice: str = ""
    remedy: Mapping[str, float] = field(default_factory=dict, hash=False)
    confidence: tuple[float, float, float] | None = None
    batches: Mapping[int, tuple[str, ...]] = field(default_factory=dict, hash=False)
    consequences: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one rule on one run: findings, or the reason why there are none.

    Attributes:
        rule: The rule's code.
        name: Its name.
        status: What became of it.
        reason: Why it found nothing to judge, or failed.
        findings: What it found.
        occasion: False where it is not applicable because the run has nothing that the rule is about, such as a scaler.
    """

    rule: str
    name: str
    status: Status
    reason: str = ""
    findings: tuple[Finding, ...] = ()
    occasion: bool = True


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The outcome of every rule on one run.

    Attributes:
        path: Where the log lies; empty for a run still in memory.
        source: What wrote it, such as "stabkit".
        steps: The number of steps judged.
        outcomes: One per rule, in catalogue order.
        notes: What the reader had to say about the log: damage, attempts, overlaps.
    """

    path: str
    source: str
    steps: int
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, the worst first, then by the step at which they fire."""
        found = [finding for outcome in self.outcomes for finding in outcome.findings]
        return tuple(sorted(found, key=lambda finding: (-finding.severity, finding.first_step)))

    @property
    def worst(self) -> Severity | None:
        """The highest severity found, consequences included; None when nothing was found."""
        found = [each for finding in self.findings for each in (finding, *finding.consequences)]
        return max((finding.severity for finding in found), default=None)

    @property
    def exit_code(self) -> int:
        """0 when nothing of warning or above was found, else 1: what `stabkit analyze` returns by default."""
        return self.exit_code_for(Severity.WARNING)

    def exit_code_for(self, threshold: Severity, required: Sequence[str] = ()) -> int:
        """The exit code for another threshold; 3 where a rule in `required` (code or name) could not run."""
        for outcome in self.outcomes:
            could_not_run = outcome.status in (Status.NOT_APPLICABLE, Status.FAILED)
            if could_not_run and (outcome.rule in required or outcome.name in required):
                return 3
        return int(self.worst is not None and self.worst >= threshold)

    def outcome(self, rule: str) -> Outcome:
        """The `Outcome` of a rule given by code or name; KeyError where it did not run."""
        for outcome in self.outcomes:
            if rule in (outcome.rule, outcome.name):
                return outcome
        raise KeyError(rule)
