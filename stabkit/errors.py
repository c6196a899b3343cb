"""What can go wrong for a caller. Every message says what happened, where, and what to do next."""

from __future__ import annotations

__all__ = ["LogVersionError", "MissingMetricError", "NotALogError", "StabkitError", "UsageError"]


class StabkitError(Exception):
    """The parent of all errors stabkit raises on purpose."""


class UsageError(StabkitError):
    """An argument cannot be used as given."""


class NotALogError(StabkitError):
    """The path holds nothing that stabkit can read."""


class LogVersionError(StabkitError):
    """The log was written by a version of stabkit whose format this one does not know."""


class MissingMetricError(StabkitError):
    """The log does not hold the quantity asked for; the message names what would have recorded it."""
