"""Which events a service has had already: one event, one effect, also when it is published under its id again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec
from django.db.models import QuerySet

from outbox import Delivery, Discard
from outbox.bulk import MAX_ROWS

P = TypeVar("P", bound=msgspec.Struct)

EVENT_ID_MAX_LENGTH: Final = 128


def without_repeats(deliveries: Sequence[Delivery[P]], kept: QuerySet[Any]) -> list[Delivery[P]]:
    """Return, in their order, the deliveries whose ``event_id`` is not among the ``kept``.

    :raises Discard: other software wrote an event id that no row can hold.
    """
    new: dict[str, Delivery[P]] = {}
    for delivery in deliveries:
        if len(delivery.event_id) > EVENT_ID_MAX_LENGTH or "\x00" in delivery.event_id:
            raise Discard(
                f"event_id {delivery.event_id[:32]!r}… is longer than {EVENT_ID_MAX_LENGTH} characters or holds a NUL"
            )
        new.setdefault(delivery.event_id, delivery)
    event_ids = list(new)
    for start in range(0, len(event_ids), MAX_ROWS):
        known = kept.filter(event_id__in=event_ids[start : start + MAX_ROWS])
        for event_id in known.values_list("event_id", flat=True):
            new.pop(event_id, None)
    return list(new.values())
