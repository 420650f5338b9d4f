"""Rows as a publisher adds them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from outbox.storage.chunks import chunks
from outbox.storage.rows import NewRow
from outbox.storage.transitions import RowTransitions


@dataclass(frozen=True, slots=True)
class PublisherRows(RowTransitions):
    """What a publisher does with the rows of a service."""

    def insert(self, rows: Iterable[NewRow]) -> int:
        """Insert ``rows`` in the caller's transaction, in their order; return how many."""
        inserted = 0
        for chunk in chunks(rows, lambda row: len(row.payload)):
            values: list[Any] = []
            for row in chunk:
                values += [
                    row.event_type,
                    self.route.service,
                    self.route.topic,
                    row.message_key,
                    row.payload.decode(),
                    row.max_retry,
                    row.traceparent,
                    row.event_id,
                ]
            self._execute(
                f"INSERT INTO {self._table} (event_type, service_name, topic, message_key, payload, max_retry,"
                f" traceparent, event_id) VALUES {', '.join(['(%s, %s, %s, %s, %s, %s, %s, %s)'] * len(chunk))}",
                values,
            )
            inserted += len(chunk)
        return inserted
