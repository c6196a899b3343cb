"""What a comparison of two runs says: plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Comparison", "Parting", "Setting", "Side", "Split", "Verdict"]


class Verdict(Enum):
    """What two runs are to each other."""

    SAME = "same"
    """Every number that both recorded is the same at every step that both have."""
    ROUNDING = "rounding"
    """They differ as sums do that are added in another order, and it never grew beyond noise."""
    NOISE = "noise"
    """They differ from the beginning, and nowhere by more than each moves by itself from step to step."""
    PARTED = "parted"
    """They were the same and differ from a step on, or they differ beyond noise."""
    UNKNOWN = "unknown"
    """They differ, and are too short to tell a difference from noise."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two runs.

    Attributes:
        path: Where it lies.
        source: What wrote it.
        steps: How many steps it has.
        first: The first of them.
        last: The last of them.
    """

    path: str
    source: str
    steps: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where two runs that began alike, number for number, stopped being the same.

    Attributes:
        step: The first step at which any number differs.
        same_until: The last step before it; None where they differ at the first one that both have.
        stage: What in that step differed first: a name of `stabkit.compare.exact.STAGES`.
        same: Those of the stages before it that both recorded there, and that were still the same.
        tensor_step: The first step from `step` on whose tensors both measured; None where there is none.
        tensors: The tensors that differ there in the first stage that does, the largest difference first.
        compared: How many tensors were compared.
        size: The largest relative difference of that step, of a norm or the loss; of the tensors that of the middle one.
        settings: What of the optimizer's settings differs at that step.
    """

    step: int
    same_until: int | None
    stage: str
    same: tuple[str, ...] = ()
    tensor_step: int | None = None
    tensors: tuple[str, ...] = ()
    compared: int = 0
    size: float = 0.0
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Parting:
    """A quantity that differs between the runs by more than either moves by itself.

    Attributes:
        metric: A name of the vocabulary.
        tensor: The tensor it belongs to; None for the whole step.
        step: From about which step on.
        until: The last step of the stretch in which it does.
        a: Its usual value in the first run in the first blocks of that stretch; NaN where it is no number.
        b: The same of the second run.
        times: How many times the noise the difference is, from then on; inf where one of the two is no number.
        p: The probability of such a difference, or a greater one, if it were at most noise.
    """

    metric: str
    tensor: str | None
    step: int
    until: int
    a: float
    b: float
    times: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One thing that was set differently.

    Attributes:
        name: What.
        a: Of the first run.
        b: Of the second.
        step: From which step on it differs; None for what belongs to the whole run.
    """

    name: str
    a: str
    b: str
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is to be said of two runs.

    Attributes:
        a: The first run.
        b: The second.
        common: How many steps both have.
        first: The first of these.
        last: The last of these.
        verdict: What they are to each other.
        split: Where they stopped being the same; None where they never were, or always are.
        partings: What differs beyond noise, the earliest first.
        looked_at: The quantities in which a difference beyond noise was looked for.
        settings: What was set differently.
        notes: What could not be compared, and why.
    """

    a: Side
    b: Side
    common: int
    first: int
    last: int
    verdict: Verdict
    split: Split | None = None
    partings: tuple[Parting, ...] = ()
    looked_at: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 where nothing parts them, 1 where they part, 3 where that could not be told."""
        return {Verdict.PARTED: 1, Verdict.UNKNOWN: 3}.get(self.verdict, 0)
