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

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.analyzers.base import NoOccasion, NotApplicable, Rule, Thresholds, found
from stabkit.analyzers.rates import rows_of
from stabkit.analyzers.series import Flags, Indices, known_median, mostly
from stabkit.finding import Evidence, Finding, Severity, State
from stabkit.metric import Array
from stabkit.runlog import RunLog

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
    """Of the tensors that can be judged.

    Attributes:
        steps: [n] measured steps.
        columns: [tensors] their columns in the log.
        root: [n, tensors] root of the mean of v-hat.
        eps: [n, tensors].
        within: [n, tensors] share of the elements near eps.
        update: [n, tensors] update over what it would be without eps.
    """

    steps: Indices
    columns: Indices
    root: Array
    eps: Array
    within: Array
    update: Array


class EpsDominatedUpdate:
    """See the module's docstring."""

    rule = RULE

    def __init__(self, thresholds: EpsDominatedUpdateThresholds | None = None) -> None:
        self.thresholds = thresholds or EpsDominatedUpdateThresholds()

    def analyze(self, run: RunLog) -> Iterator[Finding]:
        """The first matrices that eps holds back, the most held back first; once more where they become a large part."""
        limits, moments = self.thresholds, self._moments(run)
        if len(moments.steps) < limits.few:
            raise NotApplicable(f"{len(moments.steps)} steps were measured at a rate worth judging; needs {limits.few}")
        low = self._low(moments)
        numel = np.array([run.tensors[i].numel for i in moments.columns], dtype=np.float64)
        large = (low.any(axis=0) * numel).sum(axis=1) >= limits.part * numel.sum()
        if not low.any():
            return
        first = int(np.argmax(low.any(axis=(0, 2))))
        if not large.any() or first < int(np.argmax(large)):
            yield self._finding(run, moments, low, first, Severity.INFO)
        if large.any():
            yield self._finding(run, moments, low, int(np.argmax(large)), Severity.WARNING)

    def _low(self, moments: _Moments) -> Flags:
        """[2, n, tensors]: where eps decides, seen over `few` and over `window` steps that end at a row."""
        limits, shape = self.thresholds, moments.root.shape
        low = np.zeros((2, *shape), dtype=bool)
        clocks = ((limits.few, limits.far_root, limits.far_update), (limits.window, limits.root, limits.update))
        with np.errstate(invalid="ignore"):
            for told, (window, root, update) in zip(low, clocks, strict=True):
                if len(moments.steps) >= window:
                    each = (moments.root / moments.eps < root, moments.within >= limits.within, moments.update < update)
                    told[window - 1 :] = np.logical_and.reduce([mostly(flags, window) for flags in each])
        return low

    def _finding(self, run: RunLog, moments: _Moments, low: Flags, row: int, severity: Severity) -> Finding:
        limits, concerned = self.thresholds, np.flatnonzero(low[:, row].any(axis=0))
        window = limits.window if low[1, row].any() else limits.few
        at = row - window + 1
        with np.errstate(invalid="ignore"):
            over_eps = moments.root / moments.eps
        root, within, update = (known_median(x[at : row + 1]) for x in (over_eps, moments.within, moments.update))
        concerned = concerned[np.argsort(update[concerned], kind="stable")]
        worst, step = int(concerned[0]), int(moments.steps[row])
        names = tuple(run.tensors[moments.columns[i]].name for i in concerned)
        eps, typical = float(moments.eps[row, worst]), known_median(moments.root[at : row + 1])
        better = SAFE * float(np.nanpercentile(typical[typical > 0], 1))
        last = int(np.flatnonzero(low[..., concerned].any(axis=(0, 2)))[-1])
        return found(
            RULE,
            severity=severity,
            message=f"eps {eps:.2g} sets the update of {names[0]}: its gradients are {root[worst]:.2g} eps, and "
            f"{1 - update[worst]:.0%} of its step is lost at step {step}",
            first_step=step,
            last_step=int(moments.steps[last]),
            event_step=int(moments.steps[at]),
            last_good_step=int(moments.steps[at]) - 1,
            state=State.ONGOING if last == len(moments.steps) - 1 else State.RECOVERED,
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

    def _moments(self, run: RunLog) -> _Moments:
        columns = np.array(
            [i for i, t in enumerate(run.tensors) if t.role in ("matrix", "embedding") and t.group is not None and t.numel],
            dtype=np.int64,
        )
        if not len(columns):
            raise NoOccasion("the optimizer has no matrix")
        groups = [run.tensors[i].group for i in columns]
        numel = np.array([run.tensors[i].numel for i in columns], dtype=np.float64)
        measured = run.table("update_norm")
        rows = rows_of(run, measured.steps)
        rate, eps, beta1 = (_of_groups(run, name, groups)[rows] for name in ("lr", "eps", "beta1"))
        judged = (rate > 0) & (rate >= self.thresholds.share * np.fmax.accumulate(np.nan_to_num(rate))) & (eps > 0)
        judged &= ~self._learned(run)[rows][:, None]
        bare = _beta1_correction(run, beta1, rows)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            root = np.sqrt(run.table("exp_avg_sq_mean").values[:, columns])
            first = run.table("exp_avg_norm").values[:, columns] / bare / np.sqrt(numel)
            taken = measured.values[:, columns] / np.sqrt(numel) / rate
            update = np.where(judged & (first > 0) & (root > 0), taken * root / first, np.nan)
        keep = np.isfinite(update).any(axis=1)
        within = run.table("eps_fraction").values[:, columns]
        root = np.where(judged, root, np.nan)
        return _Moments(measured.steps[keep], columns, root[keep], eps[keep], within[keep], update[keep])

    def _learned(self, run: RunLog) -> Flags:
        """Of each step, whether the lowest median of 20 losses so far was next to nothing beside that of the first 20."""
        nothing = np.zeros(len(run.steps), dtype=bool)
        if not run.has("loss"):
            return nothing
        loss = run.series("loss")
        values = loss.values
        if len(values) < 20 or len(values) != len(run.steps) or not (values[:20] > 0).all():
            return nothing
        medians = np.median(sliding_window_view(values, 20), axis=1)
        low: Flags = np.concatenate([nothing[:19], medians < self.thresholds.learned * medians[0]])
        return low


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

