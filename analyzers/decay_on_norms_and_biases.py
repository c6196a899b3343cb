"""SK420 decay-on-norms-and-biases.

What it reports:    Weight decay that pulls the gains of normalisation layers, and biases, towards zero.
Why it matters:     Decay is meant to keep matrices small. A gain belongs at about 1 and a bias wherever the data wants it:
                    pulled to 0 they shrink what passes through every layer. Most published recipes leave both out.
How it decides:     A group with weight decay holds normalisation parameters or biases, and rate times decay, added up over
                    the steps, has come to a tenth: with no gradient to hold them, so much of them would be gone.
Known false alarms: A recipe that decays everything and was tuned so; RMSNorm gains kept as a difference from 1.
What to try:        Two groups: decay for parameters of two and more dimensions, none for the rest.
References:         He et al., Bag of Tricks for Image Classification (arXiv 1812.01187), section 3.1, "No bias decay". The
                    recipes of BERT and GPT-2: no decay for LayerNorm and bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NotApplicable, Rule, Thresholds, found
from stabkit.finding import Evidence, Finding, Severity
from stabkit.runlog import RunLog

__all__ = ["RULE", "DecayOnNormsAndBiases", "DecayOnNormsAndBiasesThresholds"]

RULE = Rule(
    code="SK420",
    name="decay-on-norms-and-biases",
    severity=Severity.INFO,
    requires=(("weight_decay", "group"), ("lr", "group")),
)


@dataclass(frozen=True, kw_only=True)
class DecayOnNormsAndBiasesThresholds(Thresholds):
    """When decay matters."""

    pull: float = 0.1
    """Sum of rate times decay over the steps. AdamW's own default of 0.01 at a rate of 1e-3 needs 10,000 steps for it."""


class DecayOnNormsAndBiases:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: DecayOnNormsAndBiasesThresholds | None = None) -> None:
        self.thresholds = thresholds or DecayOnNormsAndBiasesThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding."""
        concerned = [t for t in run.tensors if t.role in ("norm", "bias") and t.trainable and t.group is not None]
        if not run.tensors:
            raise NotApplicable("the log does not say which parameters there are")
        rates, decay = run.table("lr").values, run.table("weight_decay").values
        groups = sorted({int(t.group or 0) for t in concerned} & set(range(rates.shape[1])))
        if not groups:
            return
        pull = np.cumsum(np.nan_to_num(rates * decay, posinf=0.0, neginf=0.0), axis=0)[:, groups]
        rows = np.flatnonzero((pull >= self.thresholds.pull).any(axis=1))
        if not len(rows):
            return
        row = int(rows[0])
        decayed = [g for g, amount in zip(groups, pull[row], strict=True) if amount >= self.thresholds.pull]
        names = [t.name for t in concerned if t.group in decayed]
        step, given = int(run.steps[row]), float(np.nanmax(decay[row, decayed]))
        others = f" and {len(names) - 1} more norms and biases" if len(names) > 1 else ""
        yield found(
            RULE,
            message=f"weight decay {given:.3g} pulls {names[0]}{others} to zero: by {pull[row].max():.0%} up to step {step}",
            first_step=step,
            last_step=int(run.steps[-1]),
            tensors=tuple(names),
            evidence=(Evidence(metric="weight_decay", observed=given, expected=0.0, step=step),),
            advice='Split the groups: {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": '
            f'{given:.3g}}}, {{"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}}.',
        )  # fmt: skip
