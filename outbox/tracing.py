"""The W3C traceparent of the event in hand, so that the events its handler publishes continue its trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[str] = ContextVar("outbox_traceparent", default="")


def current_traceparent() -> str:
    """Return the traceparent of the event being handled, or an empty text outside a handler."""
    return _current.get()


@contextmanager
def traceparent(value: str) -> Iterator[None]:
    """Make ``value`` the current traceparent inside the block."""
    token = _current.set(value)
    try:
        yield
    finally:
        _current.reset(token)
