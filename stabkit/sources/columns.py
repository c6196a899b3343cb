"""Guesses which column of a foreign log is which quantity, by its name; what was guessed is shown and can be overridden.

A name is compared in plain form: "Train/Grad Norm", "train_grad_norm" and "train.gradNorm" are all `train_grad_norm`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stabkit.errors import UsageError
from stabkit.metric import METRICS, Array
from stabkit.runlog.stream import Steps
from stabkit.sources.collect import Collected

__all__ = ["MAPPABLE", "Taken", "plain", "take"]

MAPPABLE = ("step", *(name for name, scope in METRICS if scope in ("step", "group") and name != "loss_reduction"))
"""What --map can name: the quantities of a step, and the step itself."""

_PREFIX = (
    r"(?:(?:train|training|trainer|learner|metrics?|charts?|scalars?|stats|logs?|optim|optimizer|opt|model|global|debug|perf"
    r"|losses|loss|lm|ds|charts|system|grads?|gradients?|schedule|scheduler|lr|step|iter|batch)_)*?"
)
_TRAIN = r"(?:(?:train|training|trn|tr|trainer|metrics?|charts?|scalars?|stats|logs?|losses|learner|model)_)*"

NAMES: Mapping[str, tuple[str, ...]] = {
    "step": (
        *("global_step", "global_steps", "step", "steps", "train_step", "training_step", "optimizer_step", "iteration"),
        *("iterations", "iter", "iters", "it", "num_updates", "updates", "update", "train_steps", "train_iter", "n_iter"),
        *("global_iter", "global_iteration", "batch", "batch_idx", "batch_num", "time_batch", "s", "epoch", "epochs"),
    ),
    "loss": (
        *("loss", "train_loss", "lm_loss", "training_loss", "loss_train", "loss_training", "trn_loss", "tr_loss", "trl"),
        *("total_loss", "loss_total", "train_total_loss", "train_lm_loss", "train_loss_step", "loss_step", "batch_loss"),
        *("train_batch_loss", "iter_loss", "step_loss", "loss_train_total", "train_loss_total", "train_loss_train_total"),
        *("cross_entropy", "cross_entropy_loss", "train_cross_entropy", "train_cross_entropy_loss", "train_ce_loss", "ce_loss"),
        *("train_ce", "nll_loss", "train_nll_loss", "train_nll", "mean_loss", "loss_mean", "train_mean_loss", "avg_loss"),
        *("loss_avg", "train_loss_avg", "train_avg_loss", "average_loss", "running_loss", "main_loss", "language_loss"),
        *("train_loss_mean", "reduced_train_loss", "objective", "train_objective", "loss_epoch", "train_loss_epoch"),
    ),
    "grad_norm": (
        *("grad_norm", "gradient_norm", "gradnorm", "gnorm", "global_grad_norm", "global_gradient_norm", "grad_norm_global"),
        *("total_grad_norm", "grad_norm_total", "gradient_norm_total", "total_norm", "total_gradient_norm", "grad_global_norm"),
        *("grad_l2_norm", "grad_norm_l2", "l2_grad_norm", "grad_l2", "grad_2_0_norm_total", "grad_2_norm_total"),
        "l2_norm_grad_global",
        *("grad_norm_before_clip", "grad_norm_pre_clip", "grad_norm_unclipped", "unclipped_grad_norm", "grad_norm_raw"),
        *("raw_grad_norm", "grad_norm_preclip", "pre_clip_grad_norm", "grad_norm_before_clipping", "norm", "grads_norm"),
    ),
    "grad_norm_used": (
        *("grad_norm_used", "grad_norm_clipped", "clipped_grad_norm", "grad_norm_after_clip", "grad_norm_post_clip"),
        *("grad_norm_postclip", "post_clip_grad_norm", "grad_norm_after_clipping"),
    ),
    "lr": (
        *("lr", "learning_rate", "learningrate", "lr_abs", "lr_default", "base_lr", "current_lr", "cur_lr", "train_lr"),
        *("max_lr", "last_lr", "lr_base"),
    ),
    "loss_scale": (
        *("loss_scale", "lossscale", "loss_scaling", "grad_scale", "gradient_scale", "scaler_scale", "amp_scale"),
        *("grad_scaler", "grad_scaler_scale", "fp16_loss_scale", "scaler", "fp16_scale", "loss_scaler", "current_loss_scale"),
    ),
    "skipped": (
        *("skipped", "skip", "step_skipped", "skipped_step", "skipped_steps", "is_skipped", "overflow", "num_skipped"),
        *("number_of_skipped_iterations", "skipped_iterations", "skipped_iters", "optimizer_step_skipped", "skipped_total"),
    ),
    "time": ("time", "timestamp", "wall_time", "walltime", "created_at", "datetime", "unix_time", "wall"),
}  # fmt: skip
"""Plain names of each quantity, the surest first. For the loss, those of evaluation come last of all (`_EVALUATION`)."""

_PREFIXED = {
    quantity: re.compile((_TRAIN if quantity == "loss" else _PREFIX) + f"({'|'.join(name for name in names if len(name) > 1)})")
    for quantity, names in NAMES.items()
}

_GROUP = re.compile(r"(?P<stem>.+?)[/_\-. ]?(?:group[_ ]?|pg)?(?P<group>\d{1,3})")
"""One of several groups: "lr/1", "lr-AdamW/pg2"."""

_OF_A_GROUP = re.compile(
    r"(?:_(?:[a-z]+_)?\w*(?:adam|sgd|lion|muon|adafactor|rmsprop)[a-z]*)?(?:_(?:group|pg|param_group)?_?[01])?$"
)
"""What names of a rate end in: the optimizer's name and the first group's number."""

_EVALUATION = re.compile(r"(?:^|_)(?:val|valid|validation|eval|evaluation|test|tel|vl|dev|holdout)(?:_|$)")
_NOT_A_LOSS = re.compile(r"scal|(?:^|_)(?:aux|balance|moe|router|z|reg|kl|spike|best|min|max|std|var|delta|lr|grad)(?:_|$)")
_LONGEST_NAME = 200
_EPOCH_SECONDS = 1e9  # September 2001: what is larger is a time of day, what is smaller a duration
_EPOCH_MILLISECONDS = 1e11


@dataclass(frozen=True)
class Taken:
    """Which column was taken for what.

    Attributes:
        quantities: Column by quantity, "step" and "time" included; of a rate with several groups that of the first.
        groups: The columns of all groups of the rate, in order; empty where there is one.
        guessed: The quantities that were guessed, not told.
        notes: What there is to say of the choice.
    """

    quantities: Mapping[str, str]
    groups: tuple[str, ...] = ()
    guessed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def plain(name: str) -> str:
    """A name in lower case with single underscores, whatever its words were joined by.

    What wandb puts before it in a table ("wise-owl-3 - train/loss") and units in brackets are left out.
    """
    bare = re.sub(r"\([^)]*\)", " ", name.rpartition(" - ")[2])
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", bare)
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")


def take(collected: Collected, mapping: Mapping[str, str] | None = None) -> Taken:
    """Choose the columns.

    Args:
        collected: What was read.
        mapping: Columns by quantity as the user said; "" for a quantity that is not to be taken from anywhere.

    Raises:
        UsageError: there is no such quantity or column, or a column that was named holds no numbers.
    """
    told = _told(collected, mapping or {})
    chosen = {quantity: column for quantity, column in told.items() if column}
    holding = (name for name, column in collected.columns.items() if len(column.rows) and len(name) <= _LONGEST_NAME)
    free = {name: plain(name) for name in holding if name not in chosen.values()}
    notes: list[str] = []
    for quantity in NAMES:
        if quantity in told or quantity in ("step", "time"):
            continue
        found = _loss(collected, free, notes) if quantity == "loss" else _best(collected, quantity, free)
        if found:
            chosen[quantity] = found
            free.pop(found)
    if "step" not in told:
        chosen |= _step(collected, free, _leading(collected, chosen), notes)
    if "time" not in told:
        chosen |= _time(collected, {name: word for name, word in free.items() if name != chosen.get("step")})
    groups = () if "lr" in told or "lr" not in chosen else _groups(chosen["lr"], free)
    return Taken(chosen, groups, frozenset(chosen) - frozenset(told), tuple(notes))


def _told(collected: Collected, mapping: Mapping[str, str]) -> Mapping[str, str]:
    holding = [name for name, column in collected.columns.items() if len(column.rows)]
    for quantity, column in mapping.items():
        if quantity not in MAPPABLE:
            near = difflib.get_close_matches(quantity, MAPPABLE, n=3)
            known = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(MAPPABLE)}"
            raise UsageError(f"there is no quantity {quantity!r} to map a column to; {known}")
        if column and column not in holding:
            near = difflib.get_close_matches(column, holding, n=3) or holding[:12]
            there = "holds no numbers" if column in collected.columns else "is not there"
            raise UsageError(f"the column {column!r} {there}; there are {', '.join(near) or 'none with numbers'}")
    return mapping


def _best(collected: Collected, quantity: str, free: Mapping[str, str]) -> str | None:
    """The column whose name fits best; one with less than a tenth of the points of another that fits comes after it."""
    ranked = [(rank, name) for name, word in free.items() if (rank := _rank(quantity, word)) is not None]
    if not ranked:
        return None
    most = max(len(collected.columns[name].rows) for _, name in ranked)
    return min(ranked, key=lambda found: (10 * len(collected.columns[found[1]].rows) < most, found[0]))[1]


def _rank(quantity: str, word: str) -> tuple[int, int] | None:
    """How well a plain name fits a quantity: less is better; None where it does not."""
    if _EVALUATION.search(word) or (quantity == "loss" and _NOT_A_LOSS.search(word)):
        return None
    if quantity == "lr":
        word = _OF_A_GROUP.sub("", word)
    names = NAMES[quantity]
    if word in names:
        return 0, names.index(word)
    match = _PREFIXED[quantity].fullmatch(word)
    return (1, names.index(match[1])) if match else None


def _loss(collected: Collected, free: Mapping[str, str], notes: list[str]) -> str | None:
    """The training loss; else the one column that ends in "loss"; else the loss of an evaluation, which is said."""
    if best := _best(collected, "loss", free):
        return best
    named = [name for name, word in free.items() if re.search(r"(?:^|_)loss$", word) and not _NOT_A_LOSS.search(word)]
    train = [name for name in named if not _EVALUATION.search(free[name])]
    if len(train) == 1:
        return train[0]
    if len(train) > 1:
        notes.append(f"several columns could be the loss ({_listed(train)}): say which with --map loss=NAME")
        return None
    if named:
        found = max(named, key=lambda name: len(collected.columns[name].rows))
        notes.append(f"there is no training loss; {found} is taken for it")
        return found
    return None


def _groups(rate: str, free: Mapping[str, str]) -> tuple[str, ...]:
    """The columns of a rate with several groups: "lr", "lr/1", "lr/2" or "lr/group0", "lr/group1"."""
    own = _GROUP.fullmatch(rate)
    stem = own["stem"] if own else rate
    alike = {int(match["group"]): name for name in free if (match := _GROUP.fullmatch(name)) and match["stem"] == stem}
    first = int(own["group"]) if own else 0
    numbers = [first, *sorted(alike)]
    return (rate, *(alike[n] for n in numbers[1:])) if alike and numbers == [*range(first, first + len(numbers))] else ()


def _leading(collected: Collected, chosen: Mapping[str, str]) -> str | None:
    """The column whose rows must have a step: the loss, or of what was taken the one with the most numbers."""
    if "loss" in chosen:
        return chosen["loss"]
    return max(chosen.values(), key=lambda name: len(collected.columns[name].rows), default=None)


def _step(collected: Collected, free: Mapping[str, str], leading: str | None, notes: list[str]) -> dict[str, str]:
    """The step's column: whole numbers beside most of the numbers of the leading column, that do not begin again each epoch."""
    rows = collected.columns[leading].where if leading else np.empty(0, np.int64)
    ranked = sorted((rank, name) for name, word in free.items() if (rank := _rank("step", word)) is not None)
    for _, name in ranked:
        column = collected.columns[name]
        values = column.values
        if not np.all(np.isfinite(values)) or np.any(values != np.round(values)):
            continue
        beside = np.isin(column.where, rows) if leading else np.ones(len(values), dtype=bool)
        if 2 * int(beside.sum()) < len(rows):
            continue
        if _begins_again(values[beside], column.where[beside], collected):
            notes.append(f"{name} begins again with every epoch: it is not taken for the step")
            continue
        if free[name].endswith(("epoch", "epochs")) and len(np.unique(values[beside])) < len(rows):
            continue
        return {"step": name}
    return {}


def _begins_again(values: Array, rows: Steps, collected: Collected) -> bool:
    """Whether a count falls back to its beginning at least twice, and only where the epoch goes up."""
    falls = np.flatnonzero(np.diff(values) < 0) + 1
    epoch = next((column for name, column in collected.columns.items() if plain(name).split("_")[-1] == "epoch"), None)
    if len(falls) < 2 or epoch is None or not len(epoch.rows):
        return False
    at = np.clip(np.searchsorted(epoch.where, rows, "right") - 1, 0, None)
    epochs = epoch.values[at]
    return bool(np.mean(epochs[falls] > epochs[falls - 1]) > 0.9)


def _time(collected: Collected, free: Mapping[str, str]) -> dict[str, str]:
    """The wall clock: seconds or milliseconds since 1970, not a duration."""
    candidates = {}
    for name, word in free.items():
        if _rank("time", word) is not None:
            middle = float(np.median(collected.columns[name].values))
            if _EPOCH_SECONDS < middle < 100 * _EPOCH_MILLISECONDS:
                candidates[name] = word
    found = _best(collected, "time", candidates)
    return {"time": found} if found else {}


def _listed(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
