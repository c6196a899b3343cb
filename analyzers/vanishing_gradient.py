"""SK501 vanishing-gradient.

What it reports:    Matrices whose gradient is next to nothing beside that of the layers behind them.
Why it matters:     What lies before them cannot learn: SGD hardly moves it, and Adam scales up what is little more than
                    rounding, until eps stops that too. The loss stays near its first value, or the last layers learn alone on
                    what random first layers give them. It comes from deep stacks without normalisation or residual paths,
                    saturated sigmoids, too small an initialisation, or ReLUs that have died (then the gradient is exactly 0).
How it decides:     Of 50 measured steps, the first of them step 2 or later, a matrix is below 1/1000 of the largest tensor
                    behind it in the model's order, in the median: in the norm of its gradient, in its gradient per element,
                    and in norm of gradient times norm of weights, which does not change when scale is moved from one layer
                    to the next. All three, so that neither shape nor scale alone decides. And nothing before it, embeddings
                    included, has a larger gradient: queries and keys that begin near a uniform attention have gradients as
                    small, and the gradient flows on past them. A run that converges loses its
                    gradients everywhere alike, and is not told.
Known false alarms: Branches that begin shut on purpose (LayerScale at 1e-6) until they open; parts that take part in few steps.
                    Not seen: optimizers given their parameters in another order than that of the model; a last layer that
                    vanishes with all others.
What to try:        Normalisation or residual connections between the layers; He or Xavier initialisation; where the gradient is
                    exactly 0, a smaller rate or a leaky activation.
References:         Glorot and Bengio 2010 (AISTATS), He et al. 2015, arXiv 1502.01852: variances of gradients across layers.
                    Zhang et al. 2021 (AutoTrainer, ICSE) use 1/1000 between first and last layer too. A stack of three sigmoids
                    that learned well began at 0.0032; stacks that did not learn lie at 0.00005 and below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stabkit.analyzers.base import NoOccasion, NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.series import Flags, Indices, known_median, mostly
from stabkit.analyzers.sweep import Carry, swept
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows

__all__ = ["RULE", "VanishingGradient", "VanishingGradientThresholds"]

RULE = Rule(
    code="SK501",
    name="vanishing-gradient",
    severity=Severity.WARNING,
    requires=(("grad_norm_used", "tensor"), ("weight_norm", "tensor")),
    min_steps=51,
)


@dataclass(frozen=True, kw_only=True)
class VanishingGradientThresholds(Thresholds):
    """When a gradient is gone."""

    window: int = 50
    """Measured steps whose median is judged."""
    share: float = 1e-3
    """Of the largest tensor behind it."""


class VanishingGradient:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: VanishingGradientThresholds | None = None) -> None:
        self.thresholds = thresholds or VanishingGradientThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """At most one finding: the first matrices that are cut off, the most cut off first."""
        limits = self.thresholds
        columns = _columns(run)
        matrices = np.array([run.tensors[i].role == "matrix" for i in columns], dtype=bool)
        if not matrices[:-1].any():
            raise NoOccasion("no tensor lies behind a matrix")
        seen = swept(run, self._begin)
        rows, steps = seen.rows, run.stream.tensor_steps[seen.rows]
        if len(steps) < limits.window:
            raise NotApplicable(f"{len(steps)} steps after the first were measured; needs {limits.window}")
        if seen.first is None:
            return
        at, concerned, last = seen.first, np.flatnonzero(seen.gone)[::-1], seen.last  # of equals, such as zeros, the one
        near = Rows(run, int(rows[at]), int(rows[at + limits.window - 1]) + 1)  # nearest to the output is the cause
        kept = rows[at : at + limits.window] - near.begin
        median = known_median(_shares(run, near, columns)[kept])
        concerned = concerned[np.argsort(median[concerned], kind="stable")]
        worst, row = int(concerned[0]), at + limits.window - 1
        names = tuple(run.tensors[columns[i]].name for i in concerned)
        step, share = int(steps[row]), float(median[worst])
        norm = float(np.median(near.table("grad_norm_used")[kept, columns[worst]]))
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        what = f"is {share:.2g} of that behind it" if share else "is exactly 0"
        yield found(
            RULE,
            message=f"the gradient of {names[0]}{more} {what} in the {limits.window} measured steps up to {step}",
            first_step=step,
            last_step=int(steps[last + limits.window - 1]),
            event_step=int(steps[at]),
            last_good_step=int(steps[at]) - 1 if at else 0,
            state=State.ONGOING if last == len(steps) - limits.window else State.RECOVERED,
            tensors=names,
            evidence=(
                Evidence(metric="grad_norm_used", observed=norm, step=step, tensor=names[0], note="median"),
                Evidence(metric="gradient share", observed=share, expected=limits.share, step=step, tensor=names[0],
                         note="of the largest tensor behind it"),
            ),
            advice=_advice(names, share),
        )  # fmt: skip


    def sweeps(self) -> tuple[Callable[[RunLog], _Gone]]:
        """What it reads of the tensors."""
        return (self._begin,)

    def _begin(self, run: RunLog) -> _Gone:
        return _Gone(run, self.thresholds)


class _Gone:
    """The first matrices that are cut off, and until when they are.

    Attributes:
        rows: int64 [n], the rows of `run.stream.tensor_steps` that count.
        first: The first of these at which a window begins that shows a matrix cut off; None where none does.
        gone: [tensors], which matrices that window shows.
        last: The last at which a window begins that shows one of them.
    """

    metrics = ("grad_norm_used", "weight_norm")

    def __init__(self, run: RunLog, limits: VanishingGradientThresholds) -> None:
        self._run, self._limits = run, limits
        self._columns = _columns(run)
        self._matrices = np.array([run.tensors[i].role == "matrix" for i in self._columns], dtype=bool)
        self._low = Carry(limits.window - 1)
        self._rows: list[Indices] = []
        self._count = 0
        self.first: int | None = None
        self.last = 0
        self.gone: Flags = np.zeros(len(self._columns), dtype=bool)

    @property
    def rows(self) -> Indices:
        """All rows that count, so far."""
        return np.concatenate([np.empty(0, np.int64), *self._rows])

    def read(self, rows: Rows) -> None:
        """Take in the next block."""
        # At the first step, a layer that begins at zero stops every gradient before it.
        measured = np.flatnonzero((rows.steps >= 2) & np.isfinite(rows.table("grad_norm_used")).any(axis=1))
        low = self._low((_shares(self._run, rows, self._columns) < self._limits.share)[measured])
        self._rows.append(rows.begin + measured)
        self._count += len(measured)
        if len(low) < self._limits.window or not low[:, self._matrices].any():
            return
        gone = mostly(low, self._limits.window) & self._matrices
        begin = self._count - len(low)
        if self.first is None and gone.any():
            at = int(np.argmax(gone.any(axis=1)))
            self.first, self.gone = begin + at, gone[at]
        lasting = np.flatnonzero(gone[:, self.gone].any(axis=1))
        if len(lasting):
            self.last = begin + int(lasting[-1])


def _columns(run: RunLog) -> Indices:
    """The tensors that have elements."""
    return np.array([i for i, t in enumerate(run.tensors) if t.numel], dtype=np.int64)


def _shares(run: RunLog, rows: Rows, columns: Indices) -> Array:
    """[rows, tensors]: gradient over the largest behind it, the largest of three ways to compare; NaN if unknown."""
    gradients, weights = (np.take(rows.table(name), columns, axis=1) for name in ("grad_norm_used", "weight_norm"))
    root = np.sqrt([run.tensors[i].numel for i in columns])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        before = np.fmax.accumulate(gradients, axis=1)
        ways = [before / _behind(gradients)]
        ways += [values / _behind(values) for values in (gradients / root, gradients * weights)]
    return np.asarray(np.maximum.reduce(ways))


def _behind(values: Array) -> Array:
    """The largest value of the columns behind each; NaN behind the last, and where all of them are 0 or unknown."""
    reversed_max = np.fmax.accumulate(values[:, ::-1], axis=1)[:, ::-1]
    behind = np.full_like(values, np.nan)
    behind[:, :-1] = reversed_max[:, 1:]
    return np.where(behind > 0, behind, np.nan)


def _advice(names: tuple[str, ...], share: float) -> str:
    if share == 0:
        return (
            f"Look at what {names[0]} gives: units that are 0 for every input pass nothing back. Start again at a tenth of "
            "the rate, with biases that begin at 0, or with a leaky activation."
        )
    return (
        f"Put normalisation or residual connections around {names[0]} and what follows it, or start its weights "
        f"larger: it gets a gradient {1 / share:.2g} times smaller than the layers behind it."
    )
