"""Errors of declaring, publishing, reading and carrying events."""

from __future__ import annotations

from collections.abc import Iterable


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


class FieldError(OutboxError, ValueError):
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
    """The event cannot be handled, now or later: retrying is pointless, and it is dead at once."""


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


# --- tests of a project ------------------------------------------------------------------------------------------


class DrainError(OutboxError, AssertionError):
    """``outbox.testing.drain`` could not bring every event to a good end."""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
