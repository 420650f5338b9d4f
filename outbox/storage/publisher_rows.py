"""Rows as a publisher adds them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from outbox.storage.chunks import chunks
from outbox.storage.rows import NewRow
from outbox.storage.transitions import RowTransitions, insertion

_GIVEN: Final = (
    "service_name",
    "topic",
    "event_type",
    "message_key",
    "payload",
    "max_retry",
    "traceparent",
    "event_id",
)


@dataclass(frozen=True, slots=True)
class PublisherRows(RowTransitions):
    """What a publisher does with the rows of a service."""

    def insert(self, rows: Iterable[NewRow]) -> int:
        """Insert ``rows`` in the caller's transaction, in their order; return how many."""
        insert, one_row = insertion(self.route, self._sql, dict.fromkeys(_GIVEN, "%s"))
        inserted = 0
        for chunk in chunks(rows, lambda row: len(row.payload)):
            values: list[Any] = []
            for row in chunk:
                values += [
                    self.route.service,
                    self.route.topic,
                    row.event_type,
                    row.message_key,
                    row.payload.decode(),
                    row.max_retry,
                    row.traceparent,
                    row.event_id,
                ]
            self._execute(insert + ", ".join([one_row] * len(chunk)), values)
            inserted += len(chunk)
        return inserted
