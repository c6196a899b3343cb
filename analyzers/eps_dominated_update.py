"""SK504 eps-dominated-update.

What it reports:    A matrix under Adam whose gradients are so small that eps, not they, sets the size of its update.
Why it matters:     Adam divides by sqrt(v-hat) + eps. Where sqrt(v-hat) is below eps more than half of the step is lost, and
                    what is left is in proportion to the gradient, as in plain gradient descent at a tiny rate: such tensors
                    learn late or not at all while the others go on. It comes from an eps set for other gradients, a loss
                    scaled down, a low clip limit, or gradients that shrink as the model grows.
How it decides:     In the median of 50 measured steps: the root of the mean of v-hat, in which the largest elements weigh most,
                    is below eps, at least half of all elements are within 10 eps, and the update is less than 0.6 of
                    rate x rms(m) / rms(sqrt(v)), what it would be without eps. In the median of 10 steps, where the root is
                    below 0.3 eps and the update less than 0.2. A warning where such matrices hold a fifth of all elements:
                    queries and keys, a sixth of a transformer, begin with gradients as small as that and outgrow them. Else
                    it is information. Elements with v = 0 (rows of an embedding that
                    never occurred) count as healthy. Biases and norms are not judged (the bias of a key has no gradient but
                    rounding), nor steps whose loss is below a hundredth of the first (then there is little left to learn).
Known false alarms: A task that is solved but whose loss has a floor above 0, at a large eps. Some raise eps on purpose, to
                    damp spikes: then it is working as meant, and costs the tensors named their rate.
What to try:        eps = 0.01 x the smallest typical sqrt(v-hat) of a matrix (1st percentile). Where a larger eps was meant,
                    raise the rate of the tensors named instead; where the loss is scaled down by hand, do not.
References:         Wortsman et al. 2023, arXiv 2309.14322, section 3.4: gradients shrink as the model and the rate grow, cross
                    the default eps, and updates collapse; a smaller eps mends it. Molybog et al. 2023, arXiv 2304.09871: four
                    layers with gradients far below eps before a 546B model diverged. At the limit of 1 half the step is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.analyzers.base import NoOccasion, NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.rates import rows_of
from stabkit.analyzers.series import Flags, Indices, known_median, mostly
from stabkit.analyzers.sweep import Carry, swept
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog
from stabkit.runlog.rows import Rows, columns_for

__all__ = ["RULE", "EpsDominatedUpdate", "EpsDominatedUpdateThresholds"]

RULE = Rule(
    code="SK504",
    name="eps-dominated-update",
    severity=Severity.WARNING,
    requires=(
        ("exp_avg_sq_mean", "tensor"), ("exp_avg_norm", "tensor"), ("eps_fraction", "tensor"), ("update_norm", "tensor"),
        ("eps", "group"), ("lr", "group"),
    ),
    min_steps=10,
)  # fmt: skip
SAFE = 0.01
"""eps over sqrt(v-hat) in the advice: it costs 1 % of the step."""


@dataclass(frozen=True, kw_only=True)
class EpsDominatedUpdateThresholds(Thresholds):
    """When eps decides."""

    window: int = 50
    """Measured steps whose median is judged."""
    root: float = 1.0
    """Root of the mean of v-hat over eps."""
    within: float = 0.5
    """Share of the elements with 0 < sqrt(v-hat) < 10 eps."""
    update: float = 0.6
    """The update over what it would be without eps: half is lost at `root`, and the moments of a step are not quite in step."""
    few: int = 10
    """Measured steps that are enough where eps decides almost alone."""
    far_root: float = 0.3
    """`root` for that: less than a quarter of the step is left."""
    far_update: float = 0.2
    """`update` for that."""
    part: float = 0.2
    """Share of the elements of all matrices above which it is a warning. Queries and keys are a sixth of a transformer."""
    learned: float = 0.01
    """A loss below this share of the first has little left to learn."""
    share: float = 0.01
    """A tensor is judged at steps of at least this share of its highest rate so far."""


@dataclass(frozen=True)
class _Moments:
    """Of the tensors that can be judged, in some records.

    Attributes:
        root: [n, tensors] root of the mean of v-hat.
        eps: [n, tensors].
        within: [n, tensors] share of the elements near eps.
        update: [n, tensors] update over what it would be without eps.
    """

    root: Array
    eps: Array
    within: Array
    update: Array


class _Low:
    """Where eps decides, of the records that have a rate worth judging.

    Attributes:
        columns: [tensors] the columns in the log of those that can be judged.
        count: How many records there are.
        first: The first of them at which eps decides in any tensor; None where it never does.
        large: The first at which it does in a large part of all elements.
    """

    metrics = ("update_norm", "exp_avg_sq_mean", "exp_avg_norm", "eps_fraction")

    def __init__(self, run: RunLog, limits: EpsDominatedUpdateThresholds) -> None:
        self._run, self._limits = run, limits
        judged = (i for i, t in enumerate(run.tensors) if t.role in ("matrix", "embedding") and t.group is not None and t.numel)
        self.columns: Indices = np.array([*judged], dtype=np.int64)
        if not len(self.columns):
            raise NoOccasion("the optimizer has no matrix")
        self._numel = np.array([run.tensors[i].numel for i in self.columns], dtype=np.float64)
        self._settings = _Settings(run, limits, [run.tensors[i].group or 0 for i in self.columns])
        self._clocks = (
            (limits.few, limits.far_root, limits.far_update, Carry(limits.few - 1)),
            (limits.window, limits.root, limits.update, Carry(limits.window - 1)),
        )
        self._kept: list[Indices] = []
        self._found: list[tuple[int, Flags]] = []
        self.count = 0
        self.first: int | None = None
        self.large: int | None = None

    @property
    def rows(self) -> Indices:
        """The rows of `run.stream.tensor_steps` that are its records."""
        return np.concatenate([np.empty(0, np.int64), *self._kept])

    def at(self, row: int) -> Flags:
        """[2, tensors]: where eps decides at a record, seen over `few` and over `window` of them."""
        return next(low[:, row - begin] for begin, low in reversed(self._found) if begin <= row)

    def last(self, tensors: Indices) -> int:
        """The last record at which eps decides in any of these tensors."""
        ends = (begin + np.flatnonzero(low[..., tensors].any(axis=(0, 2))) for begin, low in reversed(self._found))
        return int(next(rows for rows in ends if len(rows))[-1])

    def moments(self, begin: int, end: int) -> _Moments:
        """Some of the records."""
        rows = self.rows[begin:end]
        held = Rows(self._run, int(rows[0]), int(rows[-1]) + 1, columns_for(self.metrics))
        whole = self._moments(held)
        return _Moments(*(each[rows - held.begin] for each in (whole.root, whole.eps, whole.within, whole.update)))

    def read(self, rows: Rows) -> None:
        """Take in the next block."""
        whole = self._moments(rows)
        keep = np.flatnonzero(np.isfinite(whole.update).any(axis=1))
        begin, self.count = self.count, self.count + len(keep)
        self._kept.append(rows.begin + keep)
        low: Any = np.zeros((2, len(keep), len(self.columns)), dtype=bool)
        with np.errstate(invalid="ignore"):
            over_eps = whole.root[keep] / whole.eps[keep]
            near = whole.within[keep] >= self._limits.within
            for told, (window, root, update, carry) in zip(low, self._clocks, strict=True):
                each: Any = carry(np.stack([over_eps < root, near, whole.update[keep] < update], axis=1))
                if len(each) >= window and each.any(axis=(0, 2)).all():
                    seen = np.logical_and.reduce([mostly(each[:, i], window) for i in range(3)])
                    told[len(keep) - len(seen) :] = seen
        if not low.any():
            return
        self._found.append((begin, low))
        either = low.any(axis=0)
        large = (either * self._numel).sum(axis=1) >= self._limits.part * self._numel.sum()
        if self.first is None:
            self.first = begin + int(np.argmax(either.any(axis=1)))
        if self.large is None and large.any():
            self.large = begin + int(np.argmax(large))

    def _moments(self, rows: Rows) -> _Moments:
        """Of all rows."""
        rate, eps, bare, judged = self._settings.of(rows)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            root = np.sqrt(np.take(rows.table("exp_avg_sq_mean"), self.columns, axis=1))
            first = np.take(rows.table("exp_avg_norm"), self.columns, axis=1) / bare / np.sqrt(self._numel)
            taken = np.take(rows.table("update_norm"), self.columns, axis=1) / np.sqrt(self._numel) / rate
            update = np.where(judged & (first > 0) & (root > 0), taken * root / first, np.nan)
        return _Moments(np.where(judged, root, np.nan), eps, np.take(rows.table("eps_fraction"), self.columns, axis=1), update)


class _Settings:
    """What the groups of some tensors were set to at each measured step: rate, eps, correction of m, whether it is judged."""

    def __init__(self, run: RunLog, limits: EpsDominatedUpdateThresholds, groups: list[int]) -> None:
        rows = rows_of(run, run.stream.tensor_steps)
        different, self._group = np.unique(groups, return_inverse=True)
        rate, eps, beta1 = (_of_groups(run, name, different.tolist())[rows] for name in ("lr", "eps", "beta1"))
        judged = (rate > 0) & (rate >= limits.share * np.fmax.accumulate(np.nan_to_num(rate))) & (eps > 0)
        judged &= ~_learned(run, limits.learned)[rows][:, None]
        self._each: tuple[Any, ...] = (rate, eps, _beta1_correction(run, beta1, rows), judged)

    def of(self, rows: Rows) -> tuple[Any, Any, Any, Any]:
        """Those of some rows, each [rows, tensors]."""
        rate, eps, bare, judged = (each[rows.begin :][: len(rows), self._group] for each in self._each)
        return rate, eps, bare, judged


def _learned(run: RunLog, share: float) -> Flags:
    """Of each step, whether the lowest median of 20 losses so far was next to nothing beside that of the first 20."""
    nothing = np.zeros(len(run.steps), dtype=bool)
    if not run.has("loss"):
        return nothing
    values = run.series("loss").values
    if len(values) < 20 or len(values) != len(run.steps) or not (values[:20] > 0).all():
        return nothing
    medians = np.median(sliding_window_view(values, 20), axis=1)
    return np.append(nothing[:19], medians < share * medians[0])


class EpsDominatedUpdate:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: EpsDominatedUpdateThresholds | None = None) -> None:
        self.thresholds = thresholds or EpsDominatedUpdateThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """The first matrices that eps holds back, the most held back first; once more where they become a large part."""
        limits, seen = self.thresholds, swept(run, self._begin)
        if seen.count < limits.few:
            raise NotApplicable(f"{seen.count} steps were measured at a rate worth judging; needs {limits.few}")
        if seen.first is not None and (seen.large is None or seen.first < seen.large):
            yield self._finding(run, seen, seen.first, Severity.INFO)
        if seen.large is not None:
            yield self._finding(run, seen, seen.large, Severity.WARNING)

    def sweeps(self) -> tuple[Callable[[RunLog], _Low]]:
        """What it reads of the tensors."""
        return (self._begin,)

    def _begin(self, run: RunLog) -> _Low:
        return _Low(run, self.thresholds)

    def _finding(self, run: RunLog, seen: _Low, row: int, severity: Severity) -> Finding:
        limits, (few, many) = self.thresholds, seen.at(row)
        concerned = np.flatnonzero(few | many)
        window = limits.window if many.any() else limits.few
        at = row - window + 1
        moments, steps = seen.moments(at, row + 1), run.stream.tensor_steps[seen.rows]
        with np.errstate(invalid="ignore"):
            over_eps = moments.root / moments.eps
        root, within, update = (known_median(x) for x in (over_eps, moments.within, moments.update))
        concerned = concerned[np.argsort(update[concerned], kind="stable")]
        worst, step = int(concerned[0]), int(steps[row])
        names = tuple(run.tensors[seen.columns[i]].name for i in concerned)
        eps, typical = float(moments.eps[-1, worst]), known_median(moments.root)
        better = SAFE * float(np.nanpercentile(typical[typical > 0], 1))
        last = seen.last(concerned)
        return found(
            RULE,
            severity=severity,
            message=f"eps {eps:.2g} sets the update of {names[0]}: its gradients are {root[worst]:.2g} eps, and "
            f"{1 - update[worst]:.0%} of its step is lost at step {step}",
            first_step=step,
            last_step=int(steps[last]),
            event_step=int(steps[at]),
            last_good_step=int(steps[at]) - 1,
            state=State.ONGOING if last == len(steps) - 1 else State.RECOVERED,
            tensors=names,
            evidence=(
                Evidence(metric="exp_avg_sq_mean", observed=float(typical[worst] ** 2), expected=eps**2, step=step,
                         tensor=names[0], note=f"median of {window} steps, against eps squared"),
                Evidence(metric="eps_fraction", observed=float(within[worst]), expected=limits.within, step=step,
                         tensor=names[0]),
                Evidence(metric="update without eps", observed=float(update[worst]), expected=limits.update, step=step,
                         tensor=names[0], note="share of it that was taken"),
            ),
            advice=f"Set eps to {better:.2g}, a hundredth of the smallest typical sqrt(v-hat) of a matrix. If {eps:.2g} was "
            f"meant to damp spikes, give these {len(names)} tensors a rate {1 / update[worst]:.2g} times as high instead.",
            remedy={"eps": better},
        )  # fmt: skip


def _of_groups(run: RunLog, metric: str, groups: list[int | None]) -> Array:
    """A group's quantity [steps, tensors], for the tensors of these groups; NaN where it was not recorded."""
    if not run.has(metric, "group"):
        return np.full((len(run.steps), len(groups)), np.nan)
    values = run.table(metric).values
    return np.stack([values[:, group or 0] for group in groups], axis=1)


def _beta1_correction(run: RunLog, beta1: Array, rows: Indices) -> Array:
    """1 - beta1^t, by which m is divided; 1 where the count of steps or beta1 is not known."""
    if not run.has("applied_steps"):
        return np.ones_like(beta1)
    count = run.series("applied_steps").values[rows][:, None]
    with np.errstate(invalid="ignore"):
        correction = 1 - beta1**count
    return np.where(np.isfinite(correction) & (correction > 0), correction, 1.0)
