"""Every error that the outbox raises, as one tree: catch the branch that you mean.

The class docstring says what happened; the message of an instance names the field, the value and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any


class OutboxError(Exception):
    """Something about the outbox went wrong."""


class ConfigurationError(OutboxError):
    """``settings.OUTBOX``, an event contract or a handler is declared wrongly."""


# --- routing -----------------------------------------------------------------------------------------------------


class RoutingError(OutboxError):
    """An event type or a service has no route."""


class UnknownServiceError(RoutingError):
    """No installed app declares an outbox table for this service."""

    def __init__(self, service: str, known: Iterable[str]) -> None:
        self.service = service
        super().__init__(
            f"service {service!r} is unknown; known services: {_listed(known)}. Declare a concrete OutboxMessage model "
            f"with `service = {service!r}` in an installed app."
        )


class UnknownEventTypeError(RoutingError):
    """Nobody registered this event type, so there is no table that it could go to."""

    def __init__(self, event_type: str) -> None:
        self.event_type = event_type
        super().__init__(
            f"event type {event_type!r} is not registered by any service. Declare it with @event(...) in the "
            f"events.py of the app that owns it."
        )


class EventOwnerConflictError(RoutingError):
    """An event type was registered for a second service: one event type belongs to one service."""

    def __init__(self, event_type: str, *, owner: str, claimed_by: str) -> None:
        self.event_type, self.owner, self.claimed_by = event_type, owner, claimed_by
        super().__init__(
            f"event type {event_type!r} belongs to service {owner!r} and cannot be registered for {claimed_by!r} too. "
            f"Remove one of the two registrations."
        )


# --- publishing --------------------------------------------------------------------------------------------------


class PublishError(OutboxError):
    """An event was refused at publish; nothing was written."""


class InvalidEventError(PublishError):
    """A field of the event does not keep its contract."""

    def __init__(self, event_type: str, *, field: str, reason: str) -> None:
        self.event_type, self.field, self.reason = event_type, field, reason
        super().__init__(f"event {event_type!r} refused: field {field!r}: {reason}")


class FieldError(ValueError):
    """Raised by an event's ``validate``: ``field`` breaks a rule that types cannot express."""

    def __init__(self, field: str, reason: str) -> None:
        self.field, self.reason = field, reason
        super().__init__(f"field {field!r}: {reason}")


class PayloadTooLargeError(PublishError):
    """The payload is larger than ``MAX_PAYLOAD_BYTES``, or than what travels whole in a record of its service."""

    def __init__(
        self, event_type: str, *, size_bytes: int, limit_bytes: int, setting: str = "OUTBOX['MAX_PAYLOAD_BYTES']"
    ) -> None:
        self.event_type, self.size_bytes, self.limit_bytes = event_type, size_bytes, limit_bytes
        super().__init__(
            f"event {event_type!r} refused: field 'payload': {size_bytes:,} bytes are more than the limit of "
            f"{limit_bytes:,}. Store the data elsewhere and publish a reference to it, or raise {setting}."
        )


class WrongDatabaseError(PublishError):
    """The caller's transaction is on another database than the tables of the service that owns the event."""

    def __init__(self, event_type: str, *, service: str, expected: str, actual: str) -> None:
        self.event_type, self.service, self.expected, self.actual = event_type, service, expected, actual
        super().__init__(
            f"event {event_type!r} refused: service {service!r} keeps its outbox in database alias {expected!r}, but "
            f"the transaction is on {actual!r}, so the two would not commit together. Open "
            f"transaction.atomic(using={expected!r}) around the business write and the publish."
        )


# --- reading what was published ----------------------------------------------------------------------------------


class UnreadableError(OutboxError):
    """Bytes that cannot be read now will not be readable later: retrying is pointless."""


class EnvelopeError(UnreadableError):
    """A row's payload column or a broker record is not the envelope that it should be."""


class PayloadError(UnreadableError):
    """The payload does not decode into the event's contract."""


class UnknownVersionError(UnreadableError):
    """The service knows neither this version of the event nor a way to lift it to the current one."""


class NoHandlerError(UnreadableError):
    """The event type has no handler in this deployment."""


# --- brokers -----------------------------------------------------------------------------------------------------


class BrokerError(OutboxError):
    """The broker could not do what was asked."""


class BrokerUnavailableError(BrokerError):
    """The broker cannot be reached or cannot answer now: an outage, nobody's fault, wait and try again."""


class TopicNotReadyError(BrokerError):
    """A topic does not exist or has no leader within the time given."""


class LostSubscriptionError(BrokerError):
    """The subscription was closed or fenced while it was in use."""


# --- rows --------------------------------------------------------------------------------------------------------


class LostRowError(OutboxError):
    """A guarded update changed another number of rows than it held locks for: somebody else moved them."""


class HandlerExitError(OutboxError):
    """A handler tried to end the process or its task (``sys.exit``, a cancellation): only that event fails."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the handler raised {error!r}, which would end the worker; raise an Exception instead")


class ClosedConnectionError(OutboxError):
    """A handler closed the database connection inside its transaction: only that event fails."""

    def __init__(self) -> None:
        super().__init__(
            "the handler closed the database connection, and with it the transaction that marks its event consumed;"
            " leave the connection to the consumer"
        )


class UndoneEffectsError(OutboxError):
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


class TransactionEndedError(OutboxError):
    """A handler sent a statement that ends the consumer's transaction; it was not executed."""

    def __init__(self, sql: str) -> None:
        super().__init__(
            f"the handler sent {sql.strip()[:60]!r}, which would end the transaction that marks its event consumed, and"
            f" commit or undo other events' effects; it was not executed. Leave the transaction to the consumer"
        )


class UnfinishedCallError(OutboxError):
    """A handler returned work that nobody does: a coroutine, a generator, a future."""

    def __init__(self, result: object) -> None:
        super().__init__(
            f"the handler returned {type(result).__name__} {result!r:.200}, which nobody runs or waits for, so it had"
            f" no effect; make it a plain function that does its work before it returns"
        )


class TooManyInterruptionsError(UnreadableError):
    """Processes or connections ended, several times in a row, while an event was at work alone."""

    def __init__(self, interruptions: int) -> None:
        super().__init__(
            f"{interruptions} times in a row its process or its database connection ended, or its database fell silent,"
            f" while this event was at work alone: its handler most likely exhausts memory, crashes the process, sends"
            f" a statement that is too large, or meets a killer of long transactions. Mend it, then replay the event"
        )


class ConnectionLostError(OutboxError):
    """A database connection ended while one event was at work alone; others to that database lived on."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(
            f"the database connection ended while this event was at work alone, and no other did: {error}. A statement"
            f" above the server's max_allowed_packet does that, a killer of long transactions, or an administrator"
        )


class SilentDatabaseError(OutboxError):
    """A handler was late while the database did not answer; without that it would have returned in time."""

    def __init__(self, late: HandlerTimeoutError, *, silent_s: float) -> None:
        super().__init__(f"the database did not answer for {silent_s:.1f} s while this event was at work: {late}")


class HandlerTimeoutError(OutboxError):
    """A handler that began at ``began`` (monotonic) was ``over_s`` beyond its limit; its connections are closed."""

    def __init__(self, event_type: str, *, limit: timedelta, began: float, over_s: float = 0.0) -> None:
        self.event_type, self.limit, self.began, self.over_s = event_type, limit, began, over_s
        super().__init__(
            f"the handler did not return within {limit.total_seconds():g} s (time limit of event type {event_type!r})"
            f" and was interrupted. Give what it waits for a timeout of its own, or raise the limit by"
            f" @event(..., time_limit=...) or OUTBOX['EVENTS'][{event_type!r}]['TIME_LIMIT_SECONDS']."
        )


# --- what a handler may raise ------------------------------------------------------------------------------------


class Retry(Exception):  # noqa: N818 - an instruction to the consumer, not an error
    """Raised by a handler: try this event again; it costs an attempt.

    ``after`` replaces the back-off of the event type for this attempt.
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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
