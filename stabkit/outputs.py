"""Where the records of a watched run go: into its log and, if wanted, to TensorBoard; no stalled disk is waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stabkit.finding import Finding
from stabkit.outbox import Outbox
from stabkit.runlog import Layout, RunWriter, StepRecord

if TYPE_CHECKING:
    from stabkit.dashboard.writer import DashboardWriter

__all__ = ["Outputs"]


class Outputs:
    """Sends every record to the log and, if wanted, to TensorBoard. The log comes first and must not depend on the rest.

    Of sharded tensors one process knows a part only: TensorBoard, which shows one process, is not given them.

    Args:
        log: The run log.
        dashboard: TensorBoard's file, if any.
        first_step: The number of the first step, where the user gave it.
        warn: Tells the user a sentence.
    """

    def __init__(
        self, log: RunWriter, dashboard: DashboardWriter | None, first_step: int | None, warn: Callable[[str], None]
    ) -> None:
        self._log, self._dashboard, self._first_step, self._warn = log, dashboard, first_step, warn
        self._sharded: set[int] = set()  # the optimizers with sharded tensors
        self._outbox = Outbox(self._stalled, self._caught_up)

    def layout(self, optimizer: int, layout: Layout) -> int:
        return self._outbox.ask(lambda: self._layout(optimizer, layout))

    def _layout(self, optimizer: int, layout: Layout) -> int:
        if self._dashboard and any(tensor.shards > 1 for tensor in layout.tensors):
            if not self._sharded:
                why = "of sharded tensors one process knows a part only"
                self._log.event("not_shown", what="norms in TensorBoard", why=why)
            self._sharded.add(optimizer)
        if self._dashboard:
            self._guarded(lambda dashboard: dashboard.layout(optimizer, layout))
        return self._log.layout(optimizer, layout)

    def attempt(self, optimizer: int, count: int) -> tuple[int, int]:
        first, self._first_step = self._first_step, None
        return self._outbox.ask(lambda: self._log.begin_attempt(optimizer, count, first))

    def step(self, optimizer: int, record: StepRecord) -> None:
        size = 0 if record.tensors is None else record.tensors.nbytes
        self._outbox.do(lambda: self._step(optimizer, record), size)

    def _step(self, optimizer: int, record: StepRecord) -> None:
        self._log.write(optimizer, record)
        if self._log.gone:
            self._log.gone = False
            self._begin_anew(record.step)
        if record.step > 0:
            shown = replace(record, tensors=None) if optimizer in self._sharded else record
            self._guarded(lambda dashboard: dashboard.step(optimizer, shown))

    def event(self, event: str, **details: Any) -> None:
        self._outbox.do(lambda: self._log.event(event, **details))

    def scalars(self, step: int, values: dict[str, Any], ahead: bool = False) -> None:
        self._outbox.do(lambda: self._scalars(step, values, ahead))

    def _scalars(self, step: int, values: dict[str, Any], ahead: bool) -> None:
        self._log.scalars(step, values, ahead)
        self._guarded(lambda dashboard: dashboard.scalars(step, values))

    def finding(self, finding: Finding) -> None:
        self._outbox.do(lambda: self._guarded(lambda dashboard: dashboard.finding(finding)))

    def flush(self) -> None:
        self._outbox.do(lambda: self._guarded(lambda dashboard: dashboard.flush()))

    def close(self, ended_by: str | None) -> None:
        self._outbox.do(lambda: self._log.close(ended_by))
        if left := self._outbox.settle():
            self._warn(f"the disk has yet to take {left} records and notes, which are lost if the process ends before it does")

    def close_dashboard(self) -> None:
        """After the last findings, which come when the log is closed."""
        self._outbox.do(lambda: self._guarded(lambda dashboard: dashboard.close()))

    def give_back(self, lock: int | None) -> None:
        """Nothing more will be written: others may have the directory, as soon as nothing waits to be."""
        if lock is not None:
            self._outbox.do(lambda: os.close(lock))
        self._outbox.end()

    def _begin_anew(self, step: int) -> None:
        self._warn(
            f"somebody has deleted or moved {self._log.directory} while it was written; what came before step {step} is there "
            "no more, and recording goes on in its place"
        )
        if self._dashboard is not None:
            self._guarded(lambda dashboard: dashboard.close())
            self._dashboard = None
            self._log.event("not_shown", what="TensorBoard, from here on", why="its file is gone")

    def _stalled(self, seconds: float) -> None:
        self._warn(
            f"writing into {self._log.directory} took {seconds:.1f} s; from here on a thread writes, and the training does not "
            "wait for a disk that stalls. What the disk has not taken when the process is killed is lost"
        )
        self.event("slow_disk", seconds=round(seconds, 3))

    def _caught_up(self, seconds: float, lost: int) -> None:
        self._log.event("slow_disk", seconds=round(seconds, 3), behind=True, lost=lost)

    def _guarded(self, act: Any) -> None:
        if self._dashboard is None:
            return
        try:
            act(self._dashboard)
        except Exception as error:
            self._dashboard = None
            what = f"{type(error).__name__}: {error}"
            self._warn(f"TensorBoard output stopped ({what}); the run log goes on")
            with suppress(Exception):
                self._log.event("not_shown", what="TensorBoard, from here on", why=what)
