"""Makes what a plan is made from: locked rows, and deliveries with their handlers, without a database."""

from __future__ import annotations

from typing import Final

import msgspec

from outbox.consumer.planning import Readable
from outbox.declarations.handlers import Delivery, Handler
from outbox.exceptions import UnreadableError
from outbox.storage.rows import Locked

SINGLE, OTHER, BATCH = (Handler(lambda _given: None, batch) for batch in (False, False, True))
HANDLERS: Final = {"single": SINGLE, "other": OTHER, "batch": BATCH}
DIES, DIES_AND_PARKS = "bad", "bad-parks"
"""Event types of rows that cannot be read."""


class Nothing(msgspec.Struct):
    """A payload."""


def locked(row_id: int, key: str = "k", event_type: str = "good") -> Locked:
    """Return a published row, due, whose handler was never called."""
    return Locked(
        id=row_id,
        event_type=event_type,
        message_key=key,
        status="published",
        retry_count=0,
        replay_count=0,
        max_retry=20,
        is_due=True,
        traceparent="",
        payload=b"{}",
        payload_length=2,
    )


def readable(row_id: int, key: str = "k", handler: Handler = SINGLE) -> Readable:
    """Return what can be delivered of a row."""
    delivery = Delivery(
        outbox_id=row_id,
        event_id=str(row_id),
        event_type="good",
        event_version="v1",
        message_key=key,
        aggregate_id=key,
        payload=Nothing(),
        attempt=1,
        database="default",
    )
    return Readable(delivery, handler)


def read(row: Locked) -> Readable:
    """Return what can be delivered of ``row``, unless its event type says that it cannot be read."""
    if row.event_type in {DIES, DIES_AND_PARKS}:
        raise UnreadableError(f"row {row.id}")
    return readable(row.id, row.message_key)


def parks_key(event_type: str) -> bool:
    """Say whether the death of such an event holds back its key."""
    return event_type == DIES_AND_PARKS
