"""Puts an error into words, for a row and for a log."""

from __future__ import annotations

import traceback

from outbox.storage.rows import Failure


def message_of(error: Exception) -> str:
    """Return what ``error`` says, or that it cannot say it."""
    try:
        return str(error)
    except Exception as unspeakable:  # noqa: BLE001 - the error is somebody else's, and so is what its text does
        return f"its message cannot be read: {type(unspeakable).__name__}"


def failure_of(error: Exception, *, with_traceback: bool = True) -> Failure:
    """Describe ``error``: the class and message a person reads first, the traceback behind."""
    name = type(error).__name__
    return Failure(
        reason=f"{name}: {message_of(error)}",
        error_class=name,
        traceback="".join(traceback.format_exception(error)) if with_traceback else None,
    )
