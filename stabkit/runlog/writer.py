"""Writes one process's part of a run, and goes on with a log where its records say that it ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from stabkit.errors import LogVersionError
from stabkit.runlog.append import LineFile, StreamWriter
from stabkit.runlog.claim import claim_directory
from stabkit.runlog.format import SCHEMA_VERSION, SEGMENT_STEPS
from stabkit.runlog.lines import checksum_line
from stabkit.runlog.locate import rank_directories, stream_folders
from stabkit.runlog.record import Layout, StepRecord
from stabkit.runlog.recovery import Manifest, read_manifest
from stabkit.runlog.segments import read_segments
from stabkit.runlog.thinning import LIMIT, Thinner

__all__ = ["RunWriter", "claim_directory"]

_BEGUN = time.time()
"""When this process began, or a little later."""


class RunWriter:
    """Writes `<run>/rank00000`; the process of another rank its own, `rank00001` and so on.

    Belongs to the process that made it: in a forked child every method does nothing.

    Steps come from one thread at a time; events and scalars from any.

    Attributes:
        directory: Where it writes.
        manifest: What run.json says.
        gone: Whether somebody has deleted the log, or moved it away, while it was written. It goes on from there in its place.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        facts: dict[str, Any],
        rank: int = 0,
        segment_steps: int = SEGMENT_STEPS,
        limit: int = LIMIT,
    ) -> None:
        """Open the run, making the directory.

        Args:
            run: The run's directory.
            facts: What `run.json` should say of this process: versions, precision and so on.
            rank: Rank of this process.
            segment_steps: How many records a segment takes.
            limit: How many bytes the tensor records of an optimizer may take before old ones are thinned.

        Raises:
            OSError: the directory cannot be written.
            LogVersionError: the directory holds a log of another format version.
        """
        self.directory = Path(run) / f"rank{rank:05d}"
        self.directory.mkdir(parents=True, exist_ok=True)
        found = read_manifest(self.directory)
        if found.schema not in (None, SCHEMA_VERSION):
            raise LogVersionError(
                f"{self.directory} holds a log of format {found.schema}; this stabkit writes format {SCHEMA_VERSION}. "
                "Choose another directory for this run."
            )
        self.manifest = Manifest(SCHEMA_VERSION, found.facts | facts, found.layouts)
        self.gone = False
        self._process = os.getpid()
        self._segment_steps = segment_steps
        self._limit = limit
        self._streams: dict[int, StreamWriter] = {}
        self._thinners: dict[int, Thinner] = {}
        self._told: list[int] = []  # the steps that something was noted of
        self._lines = {name: LineFile(self.directory / name) for name in ("events.jsonl", "scalars.jsonl")}
        self._past = _Past(self.directory)
        for other in rank_directories(self.directory.parent).values():
            if other != self.directory:
                self._past.join(other)
        self._attempt: int | None = None
        self._stepped: set[int] = set()  # the optimizers that have stepped in this process and attempt
        self._unsaved = True
        self._save_manifest()
        self.event("open", schema=SCHEMA_VERSION, facts=facts)

    def layout(self, optimizer: int, layout: Layout) -> int:
        """The number of this layout in the optimizer's stream; a new one is noted as an event."""
        known = self.manifest.layouts.setdefault(optimizer, [])
        self._new_segments(optimizer)
        if layout in known:
            return known.index(layout)
        # Where run.json was lost, records with numbers of layouts that nobody knows any more keep those numbers.
        known.extend([None] * (self._past.layouts.get(optimizer, 0) - len(known)))
        known.append(layout)
        self._note("layout", optimizer=optimizer, index=len(known) - 1, layout=layout.to_json())
        self._unsaved = True
        with suppress(OSError):  # a full disk: `write` tries again
            self._save_manifest()
        return len(known) - 1

    def begin_attempt(self, optimizer: int, count: int, first_step: int | None = None) -> tuple[int, int]:
        """Decide where a stream goes on, and note it as an event.

        The first optimizer to step in a process decides: at count 0 a new attempt begins, otherwise the log's last one
        goes on. Others join it. An optimizer that has stepped in this process and is at count 0 again begins another.

        Args:
            optimizer: The optimizer's index.
            count: How many steps it has counted; -1 where it holds state but no count: it goes on where the log ends.
            first_step: The number of the coming step, where the user gave it.

        Returns:
            The attempt, from 0, and the number of the coming step.
        """
        if self._attempt is None:
            self._attempt = self._past.attempt + 1 if count == 0 else max(self._past.attempt, 0)
        elif count == 0 and optimizer in self._stepped:
            self._attempt += 1
            self._stepped = set()
        step = 1 + (count if count >= 0 else self._past.last_steps.get((optimizer, self._attempt), 0))
        step = step if first_step is None else first_step
        self._new_segments(optimizer)
        self._note("attempt", optimizer=optimizer, first_step=step, count=count)
        return self._attempt, step

    def write(self, optimizer: int, record: StepRecord) -> None:
        """Append a step to an optimizer's stream. Raises OSError where the disk refuses; a later one may pass."""
        if os.getpid() != self._process:
            return
        if optimizer not in self._streams:
            folder = self.directory / f"optimizer{optimizer}"
            thinner = Thinner(folder, self._limit, lambda: list(self._told), partial(self._thinned, optimizer))
            self._thinners[optimizer] = thinner
            self._streams[optimizer] = StreamWriter(folder, self._segment_steps, thinner.rolled)
        if record.step > 0:
            self._stepped.add(optimizer)
            self._past.last_steps[optimizer, record.attempt] = record.step
        stream = self._streams[optimizer]
        stream.write(record)
        if stream.gone:
            self.gone, stream.gone = True, False
            self._begin_anew(record.step)
        if self._unsaved:
            self._save_manifest()

    def event(self, event: str, **details: Any) -> None:
        """Append to events.jsonl. Raises OSError where the disk refuses."""
        if isinstance(step := details.get("step"), int):
            self._told.append(step)
        self._line("events.jsonl", {"event": event, **details})

    def scalars(self, step: int, values: dict[str, Any], ahead: bool = False) -> None:
        """Append the user's own numbers to scalars.jsonl, told of the step before it where they are `ahead`.

        Raises:
            OSError: the disk refuses.
        """
        self._line("scalars.jsonl", {"step": step, "values": values, **({"ahead": True} if ahead else {})})

    def note_facts(self, **facts: Any) -> None:
        """Add to what run.json says of the run. Raises OSError where the disk refuses; a later step tries again."""
        self.manifest.facts.update(facts)
        self._unsaved = True
        self._note("facts", facts=facts)
        self._save_manifest()

    def close(self, error: str | None = None) -> None:
        """Close every file; closed segments open with `numpy.load`.

        Args:
            error: The class of the exception that ended the training, None where none did.

        Raises:
            OSError: the disk refused something. Everything is closed all the same.
        """
        if os.getpid() != self._process:
            return
        failures = []
        streams, lines = self._streams.values(), self._lines.values()
        told: Callable[[], None] = partial(self._line, "events.jsonl", {"event": "close", "error": error})
        for thinner in self._thinners.values():
            thinner.finish()
        for act in (told, *(stream.close for stream in streams), *(line.close for line in lines), self._save_manifest):
            try:
                act()
            except OSError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _begin_anew(self, step: int) -> None:
        """What was written is gone: what describes it is written once more."""
        self._unsaved = True
        for line in self._lines.values():
            line.anew()
        self._note("open", schema=SCHEMA_VERSION, facts=self.manifest.facts)
        for optimizer, known in self.manifest.layouts.items():
            for index, layout in enumerate(known):
                if layout:
                    self._note("layout", optimizer=optimizer, index=index, layout=layout.to_json())
        self._note("gone", step=step)

    def _new_segments(self, optimizer: int) -> None:
        if optimizer in self._streams:
            with suppress(OSError):  # an unwritten count costs nothing: the segment reads as one that was never closed
                self._streams[optimizer].close()

    def _thinned(self, optimizer: int, stride: int, until: int) -> None:
        self._note("thinned", optimizer=optimizer, stride=stride, until=until)

    def _note(self, event: str, **details: Any) -> None:
        """An event that repeats what records or run.json say: a copy for the day those are damaged."""
        with suppress(OSError):
            self.event(event, **details)

    def _line(self, name: str, value: dict[str, Any]) -> None:
        if os.getpid() == self._process:
            self._lines[name].append({"attempt": self._attempt, "time": time.time(), **value})

    def _save_manifest(self) -> None:
        if os.getpid() != self._process:
            return
        self.manifest.line_bytes = {name: file.size() for name, file in self._lines.items()}
        path = self.directory / "run.json"
        draft = path.with_name(f".run.json.{os.getpid()}")
        try:
            draft.write_bytes(checksum_line(self.manifest.to_json()))
            os.replace(draft, path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        self._unsaved = False


class _Past:
    """What the records of earlier processes say, so that a lost or stale run.json misleads nobody.

    Attributes:
        attempt: The last attempt that made a step, -1 where there is none.
        layouts: For each optimizer, one more than the largest layout number in use.
        last_steps: The last step of each (optimizer, attempt).
    """

    def __init__(self, directory: Path) -> None:
        self.attempt = -1
        self.layouts: dict[int, int] = {}
        self.last_steps: dict[tuple[int, int], int] = {}
        for optimizer, folder in stream_folders(directory).items():
            for segment in read_segments(folder, "steps")[0]:
                for record in segment.records[segment.rows[-1:]]:  # the last speaks for all: one attempt, one layout
                    attempt = int(record["attempt"])
                    self.attempt = max(self.attempt, attempt)
                    self.layouts[optimizer] = max(self.layouts.get(optimizer, 0), int(record["layout"]) + 1)
                    self.last_steps[optimizer, attempt] = int(record["step"])

    def join(self, directory: Path) -> None:
        """Count on from where another rank is: one that died before its first step would fall behind the others."""
        for folder in stream_folders(directory).values():
            for segment in read_segments(folder, "steps", last=4)[0]:
                earlier = segment["time"] < _BEGUN  # the others of this job may have stepped already
                self.attempt = max(self.attempt, int(segment["attempt"][earlier].max(initial=-1)))
