"""The W3C traceparent of the event in hand, so that the events its handler publishes continue its trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from django.utils.module_loading import import_string

from outbox.log_text import get_logger

logger = get_logger(__name__)

TRACEPARENT_MAX_LENGTH: Final = 64
_LOGGED_EVERY_S: Final = 60.0

_current: ContextVar[str] = ContextVar("outbox_traceparent", default="")


def current_traceparent() -> str:
    """Return the traceparent of the event being handled, or an empty text outside a handler."""
    return _current.get()


@contextmanager
def traceparent(value: str) -> Iterator[None]:
    """Have events that are published inside the block carry ``value``, a W3C traceparent.

    An empty text leaves them to the function of ``OUTBOX['TRACEPARENT']``.
    """
    token = _current.set(value)
    try:
        yield
    finally:
        _current.reset(token)


class TraceparentSource:
    """The project's own function that says the current traceparent. A trace is no reason to lose an event: where it
    fails, events go without one, and the log says so now and then. ``clock`` gives seconds."""

    def __init__(self, path: str | None, *, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._failures = 0
        self._logged_at: float | None = None

    def read(self) -> str:
        """Return the current traceparent, an empty text where there is none or none that can be stored."""
        if self._path is None:
            return ""
        try:
            value = import_string(self._path)()
        except Exception as error:  # noqa: BLE001 - the function is the project's, and may raise anything
            return self._fail(error)
        if not value:
            return ""
        if isinstance(value, str) and len(value) <= TRACEPARENT_MAX_LENGTH and value.isascii() and value.isprintable():
            return value
        length = f" of {len(value)} characters" if isinstance(value, str) else ""
        wanted = f"it must be None or up to {TRACEPARENT_MAX_LENGTH} plain characters"
        return self._fail(ValueError(f"it returned a {type(value).__name__}{length}; {wanted}"))

    def _fail(self, error: Exception) -> str:
        self._failures += 1
        now_s = self._clock()
        if self._logged_at is None or now_s - self._logged_at >= _LOGGED_EVERY_S:
            self._logged_at = now_s
            logger.warning(
                "TRACEPARENT failed, events are published without a trace: source=%s failures=%d error=%s: %s",
                self._path,
                self._failures,
                type(error).__name__,
                error,
            )
        return ""
