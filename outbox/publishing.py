"""Publishing: an event becomes a row of its owner's outbox table, in the caller's transaction."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from django.db import connections

from outbox.conf import on_settings_reset, outbox_settings
from outbox.declarations.contracts import EventContract, contracts
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import PayloadTooLargeError, UnknownEventTypeError, UnreadableError, WrongDatabaseError
from outbox.registry.catalog import relay_hints, repository_of, route_registry
from outbox.registry.policies import EventPolicies
from outbox.storage.rows import NewRow
from outbox.wire.envelope import Envelope, decode_envelope, encode_envelope
from outbox.wire.tracing import TraceparentSource, current_traceparent, traceparent

__all__ = ["StoredEvent", "publish", "publish_many", "publishing_enabled", "stored_event", "traceparent"]


def publish(event: msgspec.Struct, *, using: str | None = None) -> str:
    """Write ``event`` into the outbox table of the service that owns its type; return its event id.

    One INSERT in the caller's transaction: it is sent when, and only if, that transaction commits. Without an open
    transaction it commits by itself. ``using`` states the database alias that the caller's transaction is on.

    :raises UnknownEventTypeError: nobody registered the event's type.
    :raises InvalidEventError: the event does not keep its contract; names the field and the reason.
    :raises PayloadTooLargeError: the payload is larger than ``OUTBOX['MAX_PAYLOAD_BYTES']``, or than
        ``whole_payload_bytes`` of the owner's model.
    :raises WrongDatabaseError: the caller's transaction is on another database than the owner's table.
    """
    return publish_many([event], using=using)[0]


def publish_many(events: Iterable[msgspec.Struct], *, using: str | None = None) -> list[str]:
    """Write ``events`` in their order, in one statement a service and some hundred events; return their event ids.

    All are checked before any is written. Raises as ``publish`` does.
    """
    event_ids: list[str] = []
    rows: dict[str, list[NewRow]] = {}
    for event in events:
        contract = contracts.of(event)
        _check_database(_route_of(contract), contract.event_type, using)
        event_id = uuid.uuid4().hex
        rows.setdefault(contract.service, []).append(_row(contract, event, event_id))
        event_ids.append(event_id)
    for service, of_service in rows.items():
        repository = repository_of(service)
        repository.insert(of_service)
        _wake_relays_after_commit(repository.route)
    return event_ids


def publishing_enabled() -> bool:
    """Say whether events are sent at all; publishers of what may be lost write nothing when they are not.

    :raises ConfigurationError: ``settings.OUTBOX`` is wrong.
    """
    return outbox_settings().enabled


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as its row holds it; ``payload`` is None where its contract cannot read it."""

    event_id: str
    aggregate_id: str
    payload: msgspec.Struct | None


def stored_event(service: str, *, outbox_id: int, event_type: str) -> StoredEvent:
    """Read an event back from the outbox table of ``service``, as a receiver of ``outbox.signals`` may want to.

    :raises UnknownServiceError: nobody declared the service.
    :raises UnknownEventTypeError: nobody registered the event's type.
    :raises EnvelopeError: the row is gone, or its payload column is not an envelope of ``event_type``.
    """
    contract = contracts.get(event_type)
    stored = repository_of(service).payload_of(outbox_id)
    envelope = decode_envelope(stored, outbox_id=outbox_id, event_type=event_type)
    try:
        payload = contract.decode(envelope.payload, version=envelope.event_version)
    except UnreadableError:
        payload = None
    return StoredEvent(envelope.event_id, envelope.aggregate_id, payload)


def encode_stored(contract: EventContract[Any], payload: bytes, *, event_id: str, aggregate_id: str) -> bytes:
    """Return the payload column for an encoded payload.

    :raises PayloadTooLargeError: it is larger than ``OUTBOX['MAX_PAYLOAD_BYTES']``, or than the service's records.
    """
    stored = encode_envelope(
        Envelope(
            event_id=event_id,
            event_type=contract.event_type,
            event_version=contract.version,
            aggregate_id=aggregate_id,
            payload=msgspec.Raw(payload),
        )
    )
    limit, whole = outbox_settings().max_payload_bytes, _route_of(contract).whole_payload_bytes
    if whole is not None and len(stored) > whole:
        raise PayloadTooLargeError(
            contract.event_type,
            size_bytes=len(stored),
            limit_bytes=whole,
            setting=f"whole_payload_bytes of the outbox model of {contract.service!r} and the limit of its topic",
        )
    if len(stored) > limit:
        raise PayloadTooLargeError(contract.event_type, size_bytes=len(stored), limit_bytes=limit)
    return stored


def _row(contract: EventContract[Any], event: msgspec.Struct, event_id: str) -> NewRow:
    payload = contract.encode(event)
    aggregate_id = contract.aggregate_text(event)
    return NewRow(
        event_type=contract.event_type,
        message_key=contract.message_key(event),
        payload=encode_stored(contract, payload, event_id=event_id, aggregate_id=aggregate_id),
        max_retry=EventPolicies(contracts, outbox_settings()).retry(contract.event_type).max_attempts,
        traceparent=current_traceparent() or _traceparent_source().read(),
        event_id=event_id,
    )


def _route_of(contract: EventContract[Any]) -> ServiceRoute:
    try:
        return route_registry().resolve(contract.event_type)
    except UnknownEventTypeError:
        # Declared after the registry was built, as a test or a lazily imported module does.
        route_registry().register(contract.event_type, contract.service)
        return route_registry().resolve(contract.event_type)


def _wake_relays_after_commit(route: ServiceRoute) -> None:
    """Have the relays on this host look for rows once the caller's transaction has committed."""
    hints = relay_hints()
    if not hints.is_heard(route.service):
        return
    connection = connections[route.database]
    if connection.in_atomic_block:
        give = hints.giver(route.service)
        # One is enough. Whatever rolls back the savepoint of an earlier one rolls back this event with it.
        if not (connection.run_on_commit and connection.run_on_commit[-1][1] is give):
            connection.on_commit(give, robust=True)
    elif connection.get_autocommit():
        hints.give(route.service)


def _check_database(route: ServiceRoute, event_type: str, using: str | None) -> None:
    """Refuse a publish that would not commit together with what the caller writes."""
    if using is not None and using != route.database:
        raise WrongDatabaseError(event_type, service=route.service, expected=route.database, actual=using)
    if connections[route.database].in_atomic_block:
        return
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            raise WrongDatabaseError(
                event_type, service=route.service, expected=route.database, actual=connection.alias
            )


@lru_cache(maxsize=1)
def _traceparent_source() -> TraceparentSource:
    return TraceparentSource(outbox_settings().traceparent, clock=time.monotonic)


on_settings_reset(_traceparent_source.cache_clear)
