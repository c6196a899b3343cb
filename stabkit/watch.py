"""The composition root: `watch` wires recorders, run log and TensorBoard together, and nothing else does.

This is the one public function that touches a training loop. Whatever happens in here, the loop goes on.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import torch

import stabkit
from stabkit.ending import Act, Ending
from stabkit.errors import UsageError
from stabkit.finding import Finding
from stabkit.hooks import dispatch
from stabkit.hooks.distributed import job, rank_and_world
from stabkit.hooks.monitor import Monitor
from stabkit.hooks.optimizer import unwrap
from stabkit.hooks.statistics import backend
from stabkit.live.verdicts import Verdicts
from stabkit.outputs import Outputs
from stabkit.runlog import RunWriter
from stabkit.runlog.writer import claim_directory

if TYPE_CHECKING:
    from stabkit.dashboard.writer import DashboardWriter

__all__ = ["StabkitWarning", "Watch", "watch"]


class StabkitWarning(UserWarning):
    """stabkit could not do all it was asked to; the training is not affected."""


class Recorder(Protocol):
    """What a `Watch` passes the user's own notes to."""

    def scalars(self, step: int, values: dict[str, Any], ahead: bool = False) -> None:
        """Record the user's numbers, told of the coming step where they are `ahead`."""

    def event(self, event: str, **details: Any) -> None:
        """Record a note."""

    def flush(self) -> None:
        """Make what was recorded visible to other programs."""


class Watch:
    """What `stabkit.watch` yields: a place for the user's own notes. No method raises or waits.

    Attributes:
        logdir: Where the run is recorded, None where it could not be.
    """

    def __init__(self, logdir: Path | None, monitor: Monitor | None, recorder: Recorder | None) -> None:
        self.logdir = logdir
        self._monitor, self._recorder = monitor, recorder
        self._told = False
        self._ahead: bool | None = None  # whether batches are named at the top of the loop; None before the first

    def log(self, **scalars: Any) -> None:
        """Record numbers beside the last step, such as `log(val_loss=2.3)`, or what its batch is called: `log(batch="17")`.

        Findings name the batches of their steps. Name each once, anywhere in the loop's body: between backward and step it is
        that step's; otherwise it is the coming step's if the first was named before any backward, as at the top of the loop,
        else the last step's, as after `optimizer.step()`. With several micro-batches to a step, name each.
        """
        values = {name: _plain(value) for name, value in scalars.items()}
        self._safely(lambda recorder: recorder.scalars(self._step, values, "batch" in values and self._named_ahead()))

    def mark(self, note: str) -> None:
        """Record a remark at the current step, such as `mark("lr halved")`."""
        self._safely(lambda recorder: recorder.event("mark", step=self._step, note=str(note)))

    def flush(self) -> None:
        """Make what was recorded so far visible to TensorBoard; the run log itself is always up to date."""
        self._safely(lambda recorder: recorder.flush())

    @property
    def _step(self) -> int:
        return self._monitor.step if self._monitor else 0

    def _named_ahead(self) -> bool:
        """Whether a batch that is named now is that of the coming step."""
        under_way = self._monitor is not None and self._monitor.under_way
        if self._ahead is None:
            self._ahead = self._step == 0 and not under_way
        return self._ahead or under_way

    def _safely(self, act: Any) -> None:
        if self._recorder is None:
            return
        try:
            act(self._recorder)
        except Exception as error:
            if not self._told:  # a full disk can refuse the notes of a million steps
                self._told = True
                _warn(f"a note could not be recorded ({type(error).__name__}: {error}); of others that cannot nothing is said")


@contextmanager
def watch(
    model: Any,
    optimizer: Any = None,
    logdir: str | os.PathLike[str] | None = None,
    *,
    every: int = 1,
    budget: float | None = None,
    tensorboard: bool = True,
    exact_updates: bool = False,
    forward: bool = False,
    first_step: int | None = None,
    total_steps: int | None = None,
    on_finding: Callable[[Finding], Any] | None = None,
) -> Iterator[Watch]:
    """Record every optimizer step made inside the `with`, and change nothing about the training.

    Args:
        model: A `torch.nn.Module`, or a dict of them.
        optimizer: The optimizer or a list of them; None adopts whichever steps the model's parameters. A string here is taken
            as the logdir.
        logdir: The directory to record into; "runs/<date>-<time>" by default. A second run in the same directory becomes a
            second attempt; a resumed one continues. Where several processes train together, all give the same.
        every: Measure the tensors of every n-th step; loss, rates and clipping are recorded at each.
        budget: The share of the time that stabkit may take on the training's thread, such as 0.01: the tensors of as many
            steps are measured as it pays for. Loss, rates and clipping are recorded at each; the first steps, and those after
            one that stands out, are measured one and all and paid for later. What it came to is told in the log.
        tensorboard: Also write TensorBoard's event file into the directory; of several processes rank 0 does.
        exact_updates: Measure the applied update from a copy of all weights (once their memory), instead of deriving the
            intended one from the optimizer's state.
        forward: Look at the forward passes too: a bound of the logits of every attention (`scaled_dot_product_attention` and
            `nn.MultiheadAttention`) and the size of those that `cross_entropy` is given. Nothing of a compiled model.
        first_step: The number of the first step; by default one more than the optimizer has counted.
        total_steps: How many steps the run is meant to have, if known: some advice depends on it.
        on_finding: Called with every `Finding` while the run goes on, a few steps after the event; warnings and errors are
            also printed, by the logger "stabkit". A process beside the training judges the log as `stabkit analyze` would,
            and finds the same. The call comes from another thread: set a flag there that the loop looks at, and leave the
            model alone. Each finding is told once, and again if its severity rises; what the callback raises is noted and
            goes no further. At the end of the `with` the last findings are waited for, for ten seconds at most. Of several
            processes rank 0's is called. None, the default, judges nothing and costs nothing.

    Yields:
        A `Watch`, for notes of your own.

    Raises:
        UsageError: an argument cannot be used. Nothing is raised after entry.
    """
    if isinstance(optimizer, (str, os.PathLike)):
        if logdir is not None:
            raise UsageError("watch was given two log directories: a path in second place is the logdir")
        optimizer, logdir = None, optimizer
    if not (isinstance(every, int) and every >= 1):
        raise UsageError(f"every must be a whole number from 1 on, not {every!r}")
    if budget is not None and not (isinstance(budget, (int, float)) and 0 < budget <= 1):
        raise UsageError(f"budget must be a share of the time above 0 and up to 1, such as 0.01, not {budget!r}")
    if on_finding is not None and not callable(on_finding):
        raise UsageError(f"on_finding must be a function that takes a finding, not {on_finding!r}")
    _check_model(model)
    optimizers = list(optimizer) if isinstance(optimizer, (list, tuple)) else [] if optimizer is None else [optimizer]
    unusable = [type(o).__name__ for o in optimizers if not hasattr(unwrap(o), "param_groups")]
    if unusable:
        raise UsageError(f"the optimizer must be a torch optimizer or a list of them, not {unusable[0]}")

    rank, world = _place()
    if logdir is None and world > 1:
        raise UsageError(
            f"this is one of {world} processes that train together, and each would choose another directory by the clock: "
            'pass the same logdir in all of them, such as stabkit.watch(model, optimizer, "runs/exp1")'
        )
    facts: dict[str, Any] = {"every": every, "exact_updates": exact_updates, "forward": forward, "total_steps": total_steps}
    facts |= {"world_size": world} if world > 1 else {}
    facts |= {} if budget is None else {"budget": budget}
    directory = Path(logdir) if logdir is not None else Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    claimed, lock, outputs = _open(directory, facts, tensorboard and rank == 0, first_step, rank)
    monitor = _attached(model, optimizers, outputs, every, exact_updates, forward, budget) if outputs else None
    verdicts = _judged(claimed, on_finding, outputs) if outputs and monitor and on_finding and rank == 0 else None
    del model, optimizer, optimizers  # one that is replaced inside the `with` must not live longer than it would without us
    ending = _ending(monitor, outputs, verdicts, lock)
    ended_by: str | None = None
    try:
        yield Watch(claimed if outputs else None, monitor, outputs)
    except BaseException as error:
        ended_by = type(error).__name__
        dropped = isinstance(error, GeneratorExit) and error.__traceback__ is not None and error.__traceback__.tb_next is None
        if dropped and ending and not ending.over:  # raised by no frame but ours
            _warn("recording ends: nobody holds what stabkit.watch returned. Use it in a `with`, or keep it")
        raise
    finally:
        if ending:
            ending.now(ended_by)


def _ending(monitor: Monitor | None, outputs: Outputs | None, verdicts: Verdicts | None, lock: int | None) -> Ending | None:
    """What is to be done at the end; None where that cannot be arranged, and what was begun has been taken back."""
    try:
        return Ending([*_acts(monitor, outputs, verdicts, lock)], _warn)
    except Exception as error:
        _warn(f"nothing will be recorded ({type(error).__name__}: {error}). The training goes on")
        taken_back: list[Callable[[], None]] = []
        if monitor:
            taken_back += [monitor.detach, partial(dispatch.detach, monitor)]
        if outputs:
            taken_back += [partial(outputs.close, None), outputs.close_dashboard, partial(outputs.give_back, lock)]
        for act in taken_back:
            with suppress(Exception):
                act()
        return None


def _acts(monitor: Monitor | None, outputs: Outputs | None, verdicts: Verdicts | None, lock: int | None) -> Iterator[Act]:
    if monitor:
        yield "recording could not be ended", lambda _: monitor.detach()
        yield "torch could not be restored", lambda _: dispatch.detach(monitor)  # done already, unless that failed
    if outputs:
        yield "the log could not be closed", outputs.close
    if verdicts:
        yield "live verdicts could not be ended", lambda _: verdicts.finish()  # some rules wait for a closed log
    if outputs:
        yield "TensorBoard output could not be ended", lambda _: outputs.close_dashboard()
        yield "the directory could not be given back", lambda _: outputs.give_back(lock)


def _place() -> tuple[int, int]:
    """Rank of this process, and how many train together."""
    try:
        return rank_and_world()
    except Exception as error:
        _warn(f"which of several processes this is cannot be told ({type(error).__name__}: {error})")
        return 0, 1


def _judged(directory: Path, on_finding: Callable[[Finding], Any], outputs: Outputs) -> Verdicts | None:
    def tell(finding: Finding) -> None:
        outputs.finding(finding)
        on_finding(finding)

    try:
        return Verdicts(directory, tell, outputs.event)
    except Exception as error:
        _warn(f"there will be no live verdicts ({type(error).__name__}: {error}); `stabkit analyze` judges the run afterwards")
        return None


def _attached(
    model: Any,
    optimizers: list[Any],
    outputs: Outputs,
    every: int,
    exact_updates: bool,
    forward: bool,
    budget: float | None,
) -> Monitor | None:
    try:
        monitor = Monitor(model, optimizers, outputs, every, exact_updates, _warn, forward, budget)
        if not monitor.owns_parameters():
            _warn(
                "the optimizer holds none of the model's parameters: was it made from another model, or before the model was "
                "copied or moved? Its steps are recorded under names like optimizer0.group0.0"
            )
        monitor.attach()
        return monitor
    except Exception as error:
        _warn(f"nothing will be recorded ({type(error).__name__}: {error}). The training goes on")
        return None


def _open(
    directory: Path, facts: dict[str, Any], tensorboard: bool, first_step: int | None, rank: int
) -> tuple[Path, int | None, Outputs | None]:
    try:
        claimed, lock = claim_directory(directory, rank, job())
        try:
            if claimed != directory:
                _warn(f"another process is recording into {directory}; this run is recorded into {claimed}")
            log = RunWriter(claimed, _versions() | facts, rank)
            return claimed, lock, Outputs(log, _dashboard(claimed, log) if tensorboard else None, first_step, _warn)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise
    except Exception as error:
        _warn(f"nothing will be recorded: {directory} cannot be written ({error}). The training goes on")
        return directory, None, None


def _dashboard(directory: Path, log: RunWriter) -> DashboardWriter | None:
    try:
        from stabkit.dashboard.writer import DashboardWriter  # here, because a broken tensorboard must not break the training

        return DashboardWriter(directory)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        _warn(f"there will be no TensorBoard output ({what}); the run log is written all the same")
        with suppress(Exception):
            log.event("not_shown", what="TensorBoard", why=what)
        return None


def _versions() -> dict[str, Any]:
    return {
        "stabkit": stabkit.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "statistics": backend(),
        "precision": str(torch.get_default_dtype()).removeprefix("torch."),
    }


def _check_model(model: Any) -> None:
    modules = list(model.values()) if isinstance(model, dict) else [model]
    for module in modules:
        if not isinstance(module, torch.nn.Module):
            raise UsageError(f"the model must be a torch.nn.Module or a dict of them, not {type(module).__name__}")


def _plain(value: Any) -> Any:
    """A number or string that JSON can hold; a tensor on a device is not waited for and becomes its description."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 and value.device.type == "cpu" else f"tensor on {value.device}"
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _warn(message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always", StabkitWarning)  # also where the user turned warnings into errors: training goes on
        warnings.warn(f"stabkit: {message}", StabkitWarning, stacklevel=2)


class _CallableModule(ModuleType):
    """`stabkit.watch` is a function; importing this file must not turn it into a module that cannot be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return watch(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
