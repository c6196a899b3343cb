"""The run log: an append-only directory that survives `kill -9`, and the reader that tells what is missing from it."""

from stabkit.runlog.reader import load
from stabkit.runlog.record import Group, Layout, StepRecord, TensorInfo
from stabkit.runlog.run import RunLog, Series, Stream, Table
from stabkit.runlog.writer import RunWriter

__all__ = ["Group", "Layout", "RunLog", "RunWriter", "Series", "StepRecord", "Stream", "Table", "TensorInfo", "load"]
