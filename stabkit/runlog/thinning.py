"""Keeps a long run's log small: of old steps fewer tensor records stay, of events and what surrounds them all.

Step records always stay, and tensor records of lately stay. When those of one optimizer take more than `LIMIT`, whole closed
segments are replaced, the least thinned and oldest first, by the same with every fourth step, then every sixteenth and so on.
Kept besides are the first steps of a run, and every step that stands out, with those around it: in what the step records say
(loss, norms, a step passed over), in any tensor's norms or extremes, or because an event was noted.

A segment is replaced in one go: whoever is killed in the middle has the old one. Records are copied byte for byte.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stabkit.metric import Array
from stabkit.runlog.format import HEADER_BYTES, Records, npy_header, parse_header, valid_records
from stabkit.runlog.segments import read_segments

__all__ = ["LIMIT", "Thinner", "kept", "standing_out"]

LIMIT = 192 << 20
"""Bytes of tensor records of one optimizer. With 200 tensors that is 5,700 of them."""
_NEWEST = 2
"""Segments that are never touched: the open one, and the last that was closed. Each holds 64 records or more."""
_BEGINNING = 256
"""Steps at the start of a run that stay whole at first: warmup, and what goes wrong early."""
_AROUND, _AT_LEAST = 64, 8
_BLOCK = 64
_FACTOR = np.log(4.0)
_NOISES = 8.0
"""A number stands out that is four times as large or small as is usual then, and eight times as far off as is usual."""

_SQUARES = ("grad_used_sumsq", "update_sumsq", "applied_update_sumsq", "rms_sum", "exp_avg_sq_max")
_SIZES = ("grad_absmax", "weight_absmax", "update_absmax")
_COUNTS = ("grad_nonfinite", "weight_nonfinite")
_OF_STEPS = ("loss", "grad_norm", "grad_norm_used", "update_norm", "loss_scale")

Mask = NDArray[np.bool_]


class Thinner:
    """Thins one stream, on a thread of its own.

    Args:
        folder: The stream's.
        limit: How many bytes its tensor records may take.
        told: The steps of events that were noted.
        note: Called with the stride and the last step, when records are first thinned so far.
    """

    def __init__(self, folder: Path, limit: int, told: Callable[[], Sequence[int]], note: Callable[[int, int], None]) -> None:
        self._folder, self._limit, self._told, self._note = folder, limit, told, note
        self._thread: threading.Thread | None = None
        self._again = False  # whether a segment was closed since a pass over them began
        self._noted: set[int] = set()
        self._spent: set[Path] = set()  # segments that have nothing left to give

    def rolled(self) -> None:
        """A segment was closed. Never waits."""
        self._again = True
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._try, name="stabkit-thinning", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Wait until all is done."""
        if self._thread is not None:
            self._thread.join()
            self._try()

    def _try(self) -> None:
        while self._again:
            self._again = False
            with suppress(Exception):  # a full disk: the next time, perhaps
                self._thin()

    def _thin(self) -> None:
        for leftover in self._folder.glob(".tensors-*.npy.thin"):
            leftover.unlink()
        paths = sorted(self._folder.glob("tensors-*.npy"))
        sizes = {path: path.stat().st_size for path in paths}
        if sum(sizes.values()) <= self._limit:
            return
        old = [_Old(path) for path in paths[:-_NEWEST] if path not in self._spent]
        old = [one for one in old if one.count]
        events = self._events()
        while old and sum(sizes.values()) > self._limit:
            one = min(old, key=lambda one: one.gap)
            stride = one.thin(events)
            if stride is None:
                self._spent.add(one.path)
                old.remove(one)
                continue
            sizes[one.path] = one.path.stat().st_size
            if stride not in self._noted:
                self._noted.add(stride)
                self._note(stride, one.last)

    def _events(self) -> NDArray[np.int64]:
        """The steps that stand out by their own records, or that something was noted of."""
        found = [np.asarray(self._told(), np.int64)]
        for segment in read_segments(self._folder, "steps")[0]:
            out = segment["skipped"] > 0
            for name in _OF_STEPS:
                values = segment[name]
                out |= standing_out(values[:, None], 1.0) | np.isinf(values)
            found.append(segment["step"][out])
        return np.unique(np.concatenate(found))


class _Old:
    """A closed segment of tensor records. It is in memory only while it is looked at: old segments are 192 MiB in all.

    Attributes:
        path: Its file.
        count: How many records it has; 0 where it is damaged or still open.
        last: The step of the last one.
        gap: The most steps between two of them.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.last, self.gap = path, 0, 0, 1
        with open(path, "rb") as file:
            header = parse_header(file.read(HEADER_BYTES))
        self._stride = 1
        if header is None or header.dtype is None or not header.count:
            return
        self._dtype, self.count = header.dtype, header.count
        try:
            self._measure(self._mapped())
        except ValueError:  # shorter than its header says
            self.count = 0

    def _mapped(self) -> Records:
        return np.memmap(self.path, self._dtype, mode="r", offset=HEADER_BYTES, shape=(self.count,)).view(np.ndarray)

    def _measure(self, records: Records) -> None:
        steps = records["step"]
        self.count, self.last = len(steps), int(steps[-1])
        self.gap = int(np.diff(steps).max(initial=1))

    def thin(self, events: NDArray[np.int64]) -> int | None:
        """Thin it further; the stride of what stays, None where nothing could be left out."""
        records = self._mapped()
        while self._stride < 4**10:
            self._stride *= 4
            staying = kept(records, events, self._stride)
            if np.count_nonzero(staying) < 0.8 * len(records):
                self._replace(records[staying])
                return self._stride
        return None

    def _replace(self, records: Records) -> None:
        draft = self.path.with_name(f".{self.path.name}.thin")
        try:
            with open(draft, "wb") as file:
                file.write(npy_header(records.dtype, len(records), closed=True))
                file.write(records.tobytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self.path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        self._measure(records)


def kept(records: Records, events: NDArray[np.int64], stride: int) -> Mask:
    """Which tensor records of a segment stay.

    Args:
        records: They.
        events: Steps that stand out for other reasons than their tensors, increasing.
        stride: Of the ordinary ones every so many steps stay. The greater it is, the less stays around what stands out.
    """
    steps = records["step"]
    around = max(_AROUND * 4 // stride, _AT_LEAST)
    staying: Mask = (steps - 1) % stride == 0
    staying[[0, -1]] = True
    staying |= ~valid_records(records)  # of what is damaged nobody can say
    staying |= steps <= _BEGINNING * 4 // stride
    out = np.isin(steps, events) | _tensors_standing_out(records)
    reach = np.flatnonzero(out)
    for shift in range(-around, around + 1):
        staying[np.clip(reach + shift, 0, len(steps) - 1)] = True
    return staying


def _tensors_standing_out(records: Records) -> Mask:
    tensors = records["tensors"]
    out = np.zeros(len(records), np.bool_)
    for name in _COUNTS:
        out |= (tensors[name] > 0).any(axis=1)
    for names, power in ((_SQUARES, 2.0), (_SIZES, 1.0)):
        for name in names:
            out |= standing_out(np.asarray(tensors[name]), power)
    return out


def standing_out(values: Array, power: float) -> Mask:
    """Rows in which a number is far from what is usual around it, or from what was usual shortly before.

    Args:
        values: float64 [rows, n].
        power: 2 where they are squares.
    """
    with np.errstate(all="ignore"):
        logs = np.log(np.abs(values)) / power
    logs[~np.isfinite(logs)] = np.nan
    out = np.zeros(len(logs), np.bool_)
    earlier: Array | None = None
    for begin in range(0, len(logs), _BLOCK):
        block = logs[begin : begin + _BLOCK]
        usual = _median(block)
        noise = _median(np.abs(block - usual))
        limit = np.maximum(_FACTOR, _NOISES * np.where(np.isnan(noise), 0.0, noise))
        far = np.abs(block - usual) > limit
        if earlier is not None:
            far |= np.abs(block - earlier) > limit
        out[begin : begin + len(block)] = far.any(axis=1)
        earlier = usual
    return out


def _median(values: Array) -> Array:
    """Of each column, NaN left out; NaN where there is nothing else."""
    ordered = np.sort(values, axis=0)  # NaN last
    there = np.count_nonzero(~np.isnan(values), axis=0)
    middle = ordered[np.maximum(there - 1, 0) // 2, np.arange(values.shape[1])]
    return np.where(there > 0, middle, np.nan)
