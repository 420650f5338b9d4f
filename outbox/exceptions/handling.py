"""Errors of handlers, and what a handler may raise."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from outbox.exceptions.base import OutboxError, UnreadableError


class HandlerError(OutboxError):
    """A handler did what makes its event fail, other than raising an error of its own: it costs an attempt."""


class HandlerExitError(HandlerError):
    """A handler tried to end the process or its task (``sys.exit``, a cancellation): only that event fails."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the handler raised {error!r}, which would end the worker; raise an Exception instead")


class ClosedConnectionError(HandlerError):
    """A handler closed the database connection inside its transaction: only that event fails."""

    def __init__(self) -> None:
        super().__init__(
            "the handler closed the database connection, and with it the transaction that marks its event consumed;"
            " leave the connection to the consumer"
        )


class UndoneEffectsError(HandlerError):
    """A handler returned, and what it wrote is not in the transaction that marks its event; ``cause``: what it hid."""

    def __init__(self, message: str, *, cause: BaseException | None = None) -> None:
        self.cause = cause
        super().__init__(message)

    @classmethod
    def swallowed(cls, cause: BaseException | None) -> UndoneEffectsError:
        """Return the error of a handler after which Django rolls the transaction back."""
        if cause is None:
            done = "marked its transaction for rollback (transaction.set_rollback(True)) and returned"
            return cls(f"the handler {done}, so its effects are lost; raise an exception to undo an event")
        return cls(
            f"the handler swallowed {type(cause).__name__}: {cause}. It marked the transaction for rollback, so its"
            f" effects are lost. Put what may fail into a block of its own: `with transaction.atomic(): ...` in `try`",
            cause=cause,
        )

    @classmethod
    def ended(cls, cause: BaseException | None = None) -> UndoneEffectsError:
        """Return the error of a handler whose transaction is not the open one any more."""
        swallowed = "" if cause is None else f" after it swallowed {type(cause).__name__}: {cause}"
        return cls(
            f"the transaction in which the handler wrote is not open any more{swallowed}: it was committed, rolled"
            f" back, aborted or left with a block of its own open. Leave the transaction to the consumer",
            cause=cause,
        )


class TransactionEndedError(HandlerError):
    """A handler sent a statement that ends the consumer's transaction; it was not executed."""

    def __init__(self, sql: str) -> None:
        super().__init__(
            f"the handler sent {sql.strip()[:60]!r}, which would end the transaction that marks its event consumed, and"
            f" commit or undo other events' effects; it was not executed. Leave the transaction to the consumer"
        )


class UnfinishedCallError(HandlerError):
    """A handler returned work that nobody does: a coroutine, a generator, a future."""

    def __init__(self, result: object) -> None:
        super().__init__(
            f"the handler returned {type(result).__name__} {result!r:.200}, which nobody runs or waits for, so it had"
            f" no effect; make it a plain function that does its work before it returns"
        )


class HandlerTimeoutError(HandlerError):
    """A handler that began at ``began`` (monotonic) was ``over_s`` beyond its limit; its connections are closed."""

    def __init__(self, event_type: str, *, limit: timedelta, began: float, over_s: float = 0.0) -> None:
        self.event_type, self.limit, self.began, self.over_s = event_type, limit, began, over_s
        super().__init__(
            f"the handler did not return within {limit.total_seconds():g} s (time limit of event type {event_type!r})"
            f" and was interrupted. Give what it waits for a timeout of its own, or raise the limit by"
            f" @event(..., time_limit=...) or OUTBOX['EVENTS'][{event_type!r}]['TIME_LIMIT_SECONDS']."
        )


# --- interruptions -----------------------------------------------------------------------------------------------


class InterruptionError(OutboxError):
    """An event's work was interrupted from outside: no attempt, but five in a row make the event dead."""


class ConnectionLostError(InterruptionError):
    """A database connection ended while one event was at work alone; others to that database lived on."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(
            f"the database connection ended while this event was at work alone, and no other did: {error}. A statement"
            f" above the server's max_allowed_packet does that, a killer of long transactions, or an administrator"
        )


class SilentDatabaseError(InterruptionError):
    """A handler was late while the database did not answer; without that it would have returned in time."""

    def __init__(self, late: HandlerTimeoutError, *, silent_s: float) -> None:
        super().__init__(f"the database did not answer for {silent_s:.1f} s while this event was at work: {late}")


class TooManyInterruptionsError(UnreadableError):
    """Processes or connections ended, several times in a row, while an event was at work alone."""

    def __init__(self, interruptions: int) -> None:
        super().__init__(
            f"{interruptions} times in a row its process or its database connection ended, or its database fell silent,"
            f" while this event was at work alone: its handler most likely exhausts memory, crashes the process, sends"
            f" a statement that is too large, or meets a killer of long transactions. Mend it, then replay the event"
        )


# --- what a handler may raise ------------------------------------------------------------------------------------


class Retry(Exception):  # noqa: N818 - an instruction to the consumer, not an error
    """Raised by a handler: try this event again; it costs an attempt.

    ``after`` replaces the back-off of the event type for this attempt.

    :raises ValueError: ``after`` is negative.
    """

    def __init__(self, reason: str = "the handler asked for a retry", *, after: timedelta | None = None) -> None:
        if after is not None and after < timedelta(0):
            raise ValueError(f"after must not be negative, got {after!r}")
        self.reason, self.after = reason, after
        super().__init__(reason)


class Discard(Exception):  # noqa: N818 - an instruction to the consumer, not an error
    """Raised by a handler: this event can never succeed; it is dead at once with ``reason``, without more attempts."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class FailedDeliveries(Exception):  # noqa: N818 - an instruction to the consumer, not an error
    """Raised by a handler of lists: these of its deliveries failed; the others are done again without them."""

    def __init__(self, deliveries: Iterable[Any], reason: str = "") -> None:
        self.deliveries = list(deliveries)
        self.reason = reason or "the handler named these deliveries as failed"
        super().__init__(f"{self.reason}: {', '.join(str(each.outbox_id) for each in self.deliveries[:20])}")
