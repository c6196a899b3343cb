"""The rules, and the driver that puts a run before each of them. numpy and scipy only: works where there is no torch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import numpy as np

from stabkit.analyzers.attention_logit_growth import AttentionLogitGrowth
from stabkit.analyzers.base import Analyzer, NoOccasion, NotApplicable, Rule
from stabkit.analyzers.batches import name_batches
from stabkit.analyzers.bias_correction_off import BiasCorrectionOff
from stabkit.analyzers.causes import gather
from stabkit.analyzers.clip_before_backward import ClipBeforeBackward
from stabkit.analyzers.clip_before_unscale import ClipBeforeUnscale
from stabkit.analyzers.clip_per_micro_batch import ClipPerMicroBatch
from stabkit.analyzers.coupled_weight_decay import CoupledWeightDecay
from stabkit.analyzers.decay_on_norms_and_biases import DecayOnNormsAndBiases
from stabkit.analyzers.decoupled_second_moment import DecoupledSecondMoment
from stabkit.analyzers.eps_dominated_update import EpsDominatedUpdate
from stabkit.analyzers.first_step_at_peak_rate import FirstStepAtPeakRate
from stabkit.analyzers.gradient_spike import GradientSpike
from stabkit.analyzers.gradient_underflow import GradientUnderflow
from stabkit.analyzers.growth_towards_overflow import GrowthTowardsOverflow
from stabkit.analyzers.leftover_micro_batches import LeftoverMicroBatches
from stabkit.analyzers.loss_divergence import LossDivergence
from stabkit.analyzers.loss_plateau import LossPlateau
from stabkit.analyzers.loss_scale_collapse import LossScaleCollapse
from stabkit.analyzers.loss_spike import LossSpike
from stabkit.analyzers.measured import with_confidence
from stabkit.analyzers.missing_scaler_update import MissingScalerUpdate
from stabkit.analyzers.missing_warmup import MissingWarmup
from stabkit.analyzers.missing_zero_grad import MissingZeroGrad
from stabkit.analyzers.moments_lost_on_resume import MomentsLostOnResume
from stabkit.analyzers.nonfinite_value import NonfiniteValue
from stabkit.analyzers.oversized_initialisation import OversizedInitialisation
from stabkit.analyzers.oversized_update import OversizedUpdate
from stabkit.analyzers.parameter_not_in_optimizer import ParameterNotInOptimizer
from stabkit.analyzers.parameter_without_gradient import ParameterWithoutGradient
from stabkit.analyzers.permanent_clipping import PermanentClipping
from stabkit.analyzers.schedule_restarts_on_resume import ScheduleRestartsOnResume
from stabkit.analyzers.scheduler_before_optimizer import SchedulerBeforeOptimizer
from stabkit.analyzers.scheduler_counts_skipped_steps import SchedulerCountsSkippedSteps
from stabkit.analyzers.scheduler_flattens_group_rates import SchedulerFlattensGroupRates
from stabkit.analyzers.scheduler_never_stepped import SchedulerNeverStepped
from stabkit.analyzers.scheduler_runs_past_its_end import SchedulerRunsPastItsEnd
from stabkit.analyzers.scheduler_steps_per_micro_batch import SchedulerStepsPerMicroBatch
from stabkit.analyzers.series import spacing
from stabkit.analyzers.stale_second_moment import StaleSecondMoment
from stabkit.analyzers.step_going_backwards import StepGoingBackwards
from stabkit.analyzers.step_outside_scaler import StepOutsideScaler
from stabkit.analyzers.stuck_step_count import StuckStepCount
from stabkit.analyzers.sweep import Make, Sweeper, sweep_together
from stabkit.analyzers.undivided_accumulation import UndividedAccumulation
from stabkit.analyzers.update_ratio_jump import UpdateRatioJump
from stabkit.analyzers.updates_rounded_away import UpdatesRoundedAway
from stabkit.analyzers.vanishing_gradient import VanishingGradient
from stabkit.analyzers.zero_rate_step import ZeroRateStep
from stabkit.finding import Diagnosis, Finding, Outcome, Status
from stabkit.metric import METRICS, Metric
from stabkit.runlog import RunLog, Stream

__all__ = ["ANALYZERS", "Analyzer", "NoOccasion", "NotApplicable", "Rule", "analyze", "judge"]

ANALYZERS: tuple[Analyzer, ...] = (
    MissingWarmup(),
    OversizedUpdate(),
    FirstStepAtPeakRate(),
    ZeroRateStep(),
    BiasCorrectionOff(),
    OversizedInitialisation(),
    LossSpike(),
    LossDivergence(),
    GradientSpike(),
    StaleSecondMoment(),
    DecoupledSecondMoment(),
    UpdateRatioJump(),
    NonfiniteValue(),
    GrowthTowardsOverflow(),
    LossScaleCollapse(),
    GradientUnderflow(),
    UpdatesRoundedAway(),
    AttentionLogitGrowth(),
    ClipBeforeUnscale(),
    StepOutsideScaler(),
    MissingScalerUpdate(),
    ClipBeforeBackward(),
    ClipPerMicroBatch(),
    MissingZeroGrad(),
    UndividedAccumulation(),
    LeftoverMicroBatches(),
    SchedulerBeforeOptimizer(),
    SchedulerNeverStepped(),
    SchedulerRunsPastItsEnd(),
    SchedulerCountsSkippedSteps(),
    SchedulerStepsPerMicroBatch(),
    SchedulerFlattensGroupRates(),
    ScheduleRestartsOnResume(),
    ParameterNotInOptimizer(),
    ParameterWithoutGradient(),
    StuckStepCount(),
    CoupledWeightDecay(),
    DecayOnNormsAndBiases(),
    MomentsLostOnResume(),
    VanishingGradient(),
    PermanentClipping(),
    EpsDominatedUpdate(),
    LossPlateau(),
    StepGoingBackwards(),
)  # fmt: skip
"""Every rule of the catalogue, by code."""

EMPTY = Stream(np.empty(0, np.int64))


def analyze(run: RunLog, analyzers: Iterable[Analyzer] = ANALYZERS) -> Diagnosis:
    """Put a run before each rule.

    Args:
        run: From `stabkit.load`.
        analyzers: The rules; all by default.

    Returns:
        One outcome per rule and, where the run has several optimizers, per optimizer. Never raises for what the log lacks or
        for a rule that breaks: the outcome says so.
    """
    chosen = tuple(analyzers)
    views = [run.optimizer(index) for index in range(len(run.streams))] or [replace(run, streams=(EMPTY,))]
    per_view, told = [], []
    for view in views:
        of_view, trouble = _gathered(chosen, view)
        per_view.append(of_view)
        told += trouble
    steps = max((len(view.steps) for view in views), default=0)
    outcomes = tuple(outcomes[i] for i in range(len(chosen)) for outcomes in per_view)
    return Diagnosis(path=run.path, source=run.source, steps=steps, outcomes=outcomes, notes=(*run.notes, *told))


def _gathered(analyzers: tuple[Analyzer, ...], view: RunLog) -> tuple[tuple[Outcome, ...], list[str]]:
    """The outcomes, and a sentence where what led to what could not be told: the findings then stand by themselves."""
    with suppress(Exception):  # each rule then reads for itself, and what breaks is told of the rule that it breaks
        sweep_together(view, [make for analyzer in analyzers for make in _sweeps(analyzer, view)])
    outcomes = tuple(judge(analyzer, view) for analyzer in analyzers)
    try:
        return gather((name_batches(outcome, view) for outcome in outcomes), spacing(view.steps)), []
    except Exception as error:
        return outcomes, [f"a fault of stabkit itself: what led to what could not be told ({type(error).__name__}: {error})"]


def judge(analyzer: Analyzer, run: RunLog) -> Outcome:
    """One rule on one run."""
    rule = analyzer.rule

    def outcome(status: Status, reason: str = "", findings: tuple[Finding, ...] = (), occasion: bool = True) -> Outcome:
        return Outcome(
            rule=rule.code, name=rule.name, status=status, reason=reason, findings=findings, occasion=occasion
        )

    if not len(run.steps):
        return outcome(Status.NOT_APPLICABLE, "no step was recorded")
    try:
        missing = _lacks(rule, run)
        if missing:
            why = f"the log has no {'; no '.join(map(_missing, missing))}"
            without = run.source == "stabkit" and all(metric.occasional for metric in missing)
            return outcome(Status.NOT_APPLICABLE, why, occasion=not without)
        if len(run.steps) < rule.min_steps:
            return outcome(Status.NOT_APPLICABLE, f"{len(run.steps)} steps; needs {rule.min_steps}")
        findings = tuple(with_confidence(finding) for finding in analyzer.analyze(run))
    except NotApplicable as reason:
        return outcome(Status.NOT_APPLICABLE, str(reason), occasion=not isinstance(reason, NoOccasion))
    except Exception as error:  # one broken rule must not silence the others
        return outcome(Status.FAILED, f"{type(error).__name__}: {error}")
    return outcome(Status.FOUND if findings else Status.CLEAR, findings=findings)


def _sweeps(analyzer: Analyzer, run: RunLog) -> tuple[Make, ...]:
    """What a rule reads of the tensors together with the others; nothing where it will not come to that."""
    try:
        able = len(run.steps) >= analyzer.rule.min_steps and not _lacks(analyzer.rule, run)
        return analyzer.sweeps() if able and isinstance(analyzer, Sweeper) else ()
    except Exception:  # it breaks once more when it is judged, and is told then
        return ()


def _lacks(rule: Rule, run: RunLog) -> list[Metric]:
    """What a rule needs and the log does not have."""
    lacking = [METRICS[needed] for needed in rule.requires if not run.has(*needed)]
    if rule.any_of and not any(run.has(*one) for one in rule.any_of):
        lacking += [METRICS[one] for one in rule.any_of]
    return lacking


def _missing(metric: Metric) -> str:
    per = "" if metric.scope == "step" else f" per {metric.scope}"
    return f"{metric.name}{per} (recorded by {metric.recorded_by})"
