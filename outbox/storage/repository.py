"""The only writer of outbox rows, for all of its callers."""

from __future__ import annotations

from dataclasses import dataclass

from outbox.storage.consumer_rows import ConsumerRows
from outbox.storage.operator_rows import OperatorRows
from outbox.storage.publisher_rows import PublisherRows
from outbox.storage.relay_rows import RelayRows


@dataclass(frozen=True, slots=True)
class OutboxRepository(PublisherRows, RelayRows, ConsumerRows, OperatorRows):
    """The outbox table of one service: what its publishers, relays, consumers and operators do with its rows."""
