"""Attaches the recorders to a training loop and turns their events into records, one per optimizer step."""

from __future__ import annotations

import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from stabkit.hooks import clip, dispatch, forward, loss, optimizer, precision, ring, scaler, schedule, statistics, zeroing
from stabkit.hooks.cadence import Cadence
from stabkit.hooks.faults import Faults
from stabkit.hooks.sink import Sink
from stabkit.hooks.unfinished import Unfinished
from stabkit.hooks.watched import Watched
from stabkit.hooks.watchlist import Watchlist

__all__ = ["Monitor", "Sink"]

_unseen: list[str] = []
"""The parts that found nothing to patch in this torch: every monitor says so in its log."""


class Monitor:
    """Watches the optimizers of one model.

    Args:
        model: A module or a dict of modules.
        optimizers: The optimizers; empty to adopt whichever steps the model's parameters.
        sink: Where records go.
        every: Measure the tensors of every n-th step.
        exact_updates: Measure the applied update from a copy of the weights.
        on_fault: Called once, with a sentence for the user, when something inside stabkit fails.
        look_forward: Look at the forward passes too.
        budget: The share of the time that may be spent (see `Cadence`); None for any.

    Attributes:
        alive: Whether events are wanted.
        step: The last step of the first optimizer, 0 before it.
    """

    def __init__(
        self,
        model: Any,
        optimizers: Sequence[Any],
        sink: Sink,
        every: int = 1,
        exact_updates: bool = False,
        on_fault: Callable[[str], None] = lambda message: None,
        look_forward: bool = False,
        budget: float | None = None,
    ) -> None:
        self.alive = True
        self.step = 0
        self._sink, self._on_fault = sink, on_fault
        self._watchlist = Watchlist(model, optimizers, lambda: Cadence(every, budget), exact_updates, self._note)
        self._forward = forward.Forward(model, every, self._note) if look_forward else None
        self._timed = budget is not None
        self._guards = 0  # calls of GradScaler.step in progress
        self._schedulers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._roots: list[loss.Root] = []
        self._scaling = scaler.Scaling()
        self._autocast: set[str] = set()
        self._faults = Faults()
        self._told = self._captured = False
        self._threads: set[int] = set()  # that its optimizers step in

    def attach(self) -> None:
        """Begin to receive events."""
        dispatch.attach(self)
        for part in _unseen:
            self._note("unseen", what=part, torch=str(torch.__version__))
        if self._forward:
            try:
                self._forward.attach()
            except Exception as error:  # the rest is recorded all the same; what was hooked until then is undone at the end
                self.fault("forward", error)

    def detach(self) -> None:
        """Receive no more and let go of the user's objects; the last monitor to leave restores torch."""
        try:
            dispatch.detach(self)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        try:
            if self._forward:
                self._forward.detach()
        except Exception as error:
            self.fault("forward", error)
        for watched in self._watchlist:
            try:
                self._deliver(watched, last=True)
                self._tell_unused(watched, last=True)
            except Exception as error:  # the disk is full: what is left must be let go all the same
                self.fault("detach", error)
        self._watchlist.let_go()
        self._scaling = scaler.Scaling()
        ring.release()
        statistics.release()

    def install(self) -> list[dispatch.Undo]:
        """Patch torch; what could not be patched is told in the log."""
        undo: list[dispatch.Undo] = []
        _unseen.clear()
        for part in (optimizer, clip, loss, precision, scaler, schedule, zeroing):
            found: list[dispatch.Undo] = []
            try:
                found = part.install()
            except Exception as error:
                self.fault("install", error)
            if not found:
                _unseen.append(part.__name__.rpartition(".")[2])
            undo += found
        return undo

    def owns_parameters(self) -> bool:
        """Whether the optimizers hold at least one parameter of the model; True while one is still to be adopted."""
        return self._watchlist.owns_parameters()

    @property
    def under_way(self) -> bool:
        """Whether a backward of the coming step was seen. Of several optimizers, which take turns, nobody can say: False."""
        recorders = self._watchlist.recorders()
        return len(recorders) == 1 and recorders[0].begun

    def receive(self, event: str, *details: Any) -> None:
        """Handle an event of a recorder (see `dispatch.notify`)."""
        if self._faults.passed_over(event):
            return
        handle = getattr(self, f"_on_{event}")
        if not self._timed:
            handle(*details)
            return
        begin = time.perf_counter()
        try:
            handle(*details)
        finally:
            for recorder in self._watchlist.recorders():
                recorder.cadence.spend(time.perf_counter() - begin)

    def fault(self, event: str, error: Exception) -> None:
        """Note a failure of our own; after a few in a row, give up the part that fails, or all. Training goes on either way."""
        given_up = self._faults.add(event, error)
        self.alive = not self._faults.all_over
        where = traceback.extract_tb(error.__traceback__)
        place = f"{where[-1].filename.rpartition('/')[2]}:{where[-1].lineno}" if where else ""
        what = f"{type(error).__name__}: {error}"
        if self._faults.worth_a_note:
            self._note("fault", where=event, error=what, place=place, step=self.step, stopped=not self.alive)
        if given_up:
            self._note("unseen", what=given_up, step=self.step, why=what)
        self._tell(f"a step could not be recorded ({what}); training goes on")
        if event != "step_end":  # there the gap is behind us
            for recorder in self._watchlist.recorders():
                recorder.spoiled = True

    def _tell(self, message: str) -> None:
        if not self._told:
            self._told = True
            self._on_fault(message)

    def _note(self, event: str, **details: Any) -> None:
        try:
            self._sink.event(event, **details)
        except OSError:  # the disk may be full: a step that cannot be written says so
            pass
        except Exception as error:
            self._tell(f"a note ({event}) could not be recorded ({type(error).__name__}: {error}); training goes on")

    def _on_backward_begin(self, roots: Any) -> None:
        self._roots = []
        for recorder in self._watchlist.recorders():
            recorder.backward_begin()
        self._roots = self._scaling.unscaled(roots)
        if "scaler" in _unseen:  # what a loss was multiplied by may be a scale that nobody saw
            self._roots = [loss.Root(None) if root.weighed else root for root in self._roots]

    def _on_backward_end(self, finished: bool) -> None:
        for recorder in self._watchlist.recorders():
            recorder.backward_end(self._roots, finished, self._scaling.scale)
        self._roots = []

    def _on_scaled(self, scaler: Any, outputs: Any, result: Any) -> None:
        self._scaling.add(scaler, outputs, result)

    def _on_scaler_step_begin(self, stepping: Any) -> None:
        self._guards += 1
        watched = self._watchlist.find(stepping)
        if watched is not None:
            watched.stepped = False

    def _on_scaler_step_end(self, stepping: Any, finished: bool) -> None:
        passed_over = optimizer.unwrap(stepping)
        watched = self._watchlist.known(passed_over)
        try:
            if watched is not None and finished and not watched.stepped:  # the scaler found an overflow and did not call it
                self._on_step_begin(passed_over, False)
                self._on_step_end(passed_over, skipped=True)
        finally:
            self._guards = max(0, self._guards - 1)

    def _on_scaler_updated(self) -> None:
        for recorder in self._watchlist.recorders():
            recorder.wiring.scaler_updated()

    def _on_scaler_refused(self, stepping: Any) -> None:
        watched = self._watchlist.known(stepping)
        if watched is not None and not watched.refused and watched.recorder.begun:
            watched.refused = True
            self._note("refused", optimizer=watched.index, step=watched.step)

    def _on_scheduler_step(self, scheduler: Any) -> None:
        scheduled = optimizer.unwrap(scheduler.optimizer)
        watched = self._watchlist.known(scheduled)
        recorder = watched.recorder if watched else self._watchlist.early
        if recorder is not None:
            recorder.wiring.scheduled()
        if scheduler not in self._schedulers:
            self._schedulers.add(scheduler)
            rate, epoch = schedule.number(scheduled.param_groups[0].get("lr")), getattr(scheduler, "last_epoch", None)
            self._note("scheduler", optimizer=watched.index if watched else 0, kind=type(scheduler).__name__,
                       last_epoch=epoch, rate=rate, step=watched.step if watched else 0)  # fmt: skip

    def _on_unscale_begin(self, stepping: Any) -> None:
        if watched := self._watchlist.find(stepping):
            watched.recorder.unscale_begin()

    def _on_unscale_end(self, stepping: Any) -> None:
        if watched := self._watchlist.known(stepping):
            watched.recorder.unscale_end()

    def _on_clip_begin(self, call: clip.ClipCall) -> None:
        for recorder in self._watchlist.recorders():
            recorder.clip_begin(call, self._scaling.still_on(recorder.optimizer, self._watchlist.ids()))

    def _on_clip_end(self, call: clip.ClipCall) -> None:
        for recorder in self._watchlist.recorders():
            recorder.clip_end(call)

    def _on_zeroed(self, owner: Any, parameters: Callable[[Any], Iterable[torch.Tensor]]) -> None:
        for recorder in self._watchlist.recorders():
            recorder.zeroed(parameters(owner))

    def _on_captured(self) -> None:
        if not self._captured:
            self._captured = True
            self._note("captured", step=self.step)
            self._on_fault("a part of the training is captured in a CUDA graph. Its replays run without Python: nothing of "
                           "them is recorded")  # fmt: skip

    def _on_autocast(self, dtype: str) -> None:
        if dtype not in self._autocast:
            self._autocast.add(dtype)
            self._sink.event("autocast", dtype=dtype, step=self.step)

    def _on_step_begin(self, stepping: Optimizer, closure: bool) -> None:
        watched = self._watchlist.find(stepping)
        self._watchlist.ownership.stepping(stepping)
        if watched is None:
            return
        dispatch.refuse_several_threads(self._threads)
        watched.stepped = True
        watched.recorder.refresh(fully=not watched.recorder.begun)  # backward has looked
        if watched.laid_out is not watched.recorder.roster:
            self._lay_out(watched, stepping)
        count = watched.recorder.count()
        if watched.attempt < 0 or count != watched.count:  # the first step, or a checkpoint was loaded since the last
            watched.attempt, watched.step = self._sink.attempt(watched.index, count)
            watched.count = count
            if watched.step == 1:
                self._deliver(watched, watched.recorder.weights(watched.attempt, watched.layout))
        else:
            watched.step += 1
        if watched.index == 0:
            self.step = watched.step
        watched.reach.look(watched.recorder.parameters)
        unguarded = None if self._guards else self._scaling.still_on(stepping, self._watchlist.ids())
        watched.recorder.step_begin(watched.step, closure, unguarded)

    def _on_step_end(self, stepping: Optimizer, skipped: bool = False) -> None:
        watched = self._watchlist.known(stepping)
        if watched is None:
            return
        recorder = watched.recorder
        seen = self._seen_forward(watched) if self._forward and watched.index == 0 else {}
        try:
            if recorder.spoiled:
                watched.count = recorder.count()
                return
            unfinished = recorder.step_end(watched.step, watched.attempt, watched.layout, skipped, seen)
            watched.count = recorder.count()
            self._deliver(watched, unfinished)
            self._faults.good_step()
            self._tell_news(watched)
        finally:
            watched.reach.stepped(recorder.parameters)
            self._tell_unused(watched)
            recorder.begin_step()

    def _seen_forward(self, watched: Watched) -> dict[str, torch.Tensor]:
        """What the forward passes of a step have shown; they are paid for out of the same budget."""
        assert self._forward is not None
        cadence = watched.recorder.cadence
        cadence.spend(self._forward.spent)
        return self._forward.take(watched.step, cadence.affordable)

    def _deliver(self, watched: Watched, unfinished: Unfinished | None = None, last: bool = False) -> None:
        """Hand on, in order, the records whose numbers have come; at the very last all, however long that takes."""
        if unfinished is not None and unfinished.lost:
            watched.lost += 1
        elif unfinished is not None:
            watched.unfinished.append(unfinished)
        while watched.unfinished and (last or watched.unfinished[0].ready()):
            arrived = watched.unfinished.popleft()
            record = arrived.finish()
            watched.recorder.cadence.saw(record)
            self._sink.step(watched.index, record)
            if arrived.beside:
                self._sink.scalars(record.step, {name: later.value for name, later in arrived.beside.items()})
        if last and watched.lost:
            self._note("lost", optimizer=watched.index, steps=watched.lost, why="the device was too far behind")

    def _tell_unused(self, watched: Watched, last: bool = False) -> None:
        """Parameters of the model that no optimizer holds, and parameters of the optimizer that no gradient reaches."""
        orphans = self._watchlist.ownership.orphans(self.step, last)
        if orphans:
            self._note("orphans", parameters=orphans[:20], count=len(orphans), step=self.step)
        unreached = self._watchlist.unreached(watched, last)
        if unreached:
            self._note("unreached", optimizer=watched.index, parameters=unreached[:20], count=len(unreached), step=watched.step)

    def _tell_news(self, watched: Watched) -> None:
        trust, cadence = watched.recorder.trust, watched.recorder.cadence
        if cadence.news is not None:
            told, cadence.news = cadence.news, None
            self._note("cadence", optimizer=watched.index, until=watched.step, **told)
        if why := statistics.news():
            self._note("fallback", what="triton", why=why, step=watched.step)
        if trust.news is not None:
            (why, place), trust.news = trust.news, None
            name = self._watchlist.name_of(watched, place)
            self._note("update-measured", optimizer=watched.index, why=why, tensor=name, step=watched.step)

    def _lay_out(self, watched: Watched, stepping: Optimizer) -> None:
        if watched.laid_out is None and schedule.attached(stepping):
            self._note("scheduled", optimizer=watched.index)
        watched.layout = self._sink.layout(watched.index, self._watchlist.layout(watched))
        if not watched.recorder.roster.readable:
            kinds = sorted({p.device.type for p in watched.recorder.parameters} - {"cpu", "cuda"})
            self._note("unmeasured", optimizer=watched.index, why=f"parameters on {', '.join(kinds)}", step=self.step)
            self._tell(f"parameters lie on {', '.join(kinds)}, where this version measures no tensors; loss, rates and step "
                       "counts are recorded")  # fmt: skip
