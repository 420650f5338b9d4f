"""The embedded broker: the outbox table itself is the queue, a ``published`` row is the message.

Nothing to install, the same commands and the same promises for one database. It reads rows through an interface that
the layer above gives it, and never writes one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import msgspec

from outbox.brokers.base import (
    Broker,
    Capabilities,
    IncomingRecord,
    OutgoingRecord,
    Positions,
    Producer,
    SendReport,
    Subscription,
    TopicState,
)
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import BrokerError, LostSubscriptionError
from outbox.wire.envelope import Envelope, encode_message

_POLL_FLOOR_S = 0.01
_POLL_CAP_S = 0.2
_NULL = msgspec.Raw(b"null")


class PublishedRows(Protocol):
    """The published rows of one service that this member of its group is to read."""

    @property
    def assignments(self) -> Mapping[int, int]:
        """Return the shards that this member reads, each with the number of its assignment."""
        ...

    def fetch(self, limit: int) -> list[tuple[int, str, str, int]]:
        """Return (id, event type, key, shard) in id order; the same again until their consumer has moved them."""
        ...

    def close(self) -> None:
        """Let other members have the rows."""
        ...


OpenRows = Callable[[ServiceRoute], PublishedRows]


@dataclass(frozen=True, slots=True)
class _Sent:
    outbox_ids: tuple[int, ...]

    def report(self, timeout: timedelta) -> SendReport:  # noqa: ARG002 - the row is there already
        return SendReport(acknowledged=self.outbox_ids)


class TableProducer:
    """Sends nothing: marking a row published is what makes it a message."""

    def __init__(self) -> None:
        self._closed = False

    def send(self, records: Sequence[OutgoingRecord]) -> _Sent:
        if self._closed:
            raise BrokerError("the producer is closed")
        return _Sent(tuple(record.outbox_id for record in records))

    def close(self) -> None:
        self._closed = True


class TableSubscription:
    """Polls the published rows of the shards that this member leases: a record's partition is its row's shard."""

    def __init__(self, route: ServiceRoute, rows: PublishedRows) -> None:
        self._route = route
        self._rows = rows
        self._closed = False

    @property
    def assignments(self) -> Mapping[int, int]:
        return {} if self._closed else self._rows.assignments

    def receive(self, *, max_records: int, timeout: timedelta) -> list[IncomingRecord]:
        deadline = time.monotonic() + timeout.total_seconds()
        pause_s = _POLL_FLOOR_S
        while True:
            if self._closed:
                raise LostSubscriptionError(f"the subscription of {self._route.group!r} has ended; subscribe again")
            found = self._rows.fetch(max_records)
            remaining_s = deadline - time.monotonic()
            if found or remaining_s <= 0:
                return [self._record(*row) for row in found]
            time.sleep(min(pause_s, remaining_s))
            pause_s = min(pause_s * 2, _POLL_CAP_S)

    def commit(self, records: Sequence[IncomingRecord]) -> None:
        """Hold nothing: a row that is done is not ``published`` any more."""

    def hand_back(self, records: Sequence[IncomingRecord]) -> None:
        """Hold nothing: a shard waits for nobody when it leaves."""

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._rows.close()

    def _record(self, outbox_id: int, event_type: str, key: str, shard: int) -> IncomingRecord:
        pointer = Envelope(event_id="", event_type=event_type, event_version="", aggregate_id="", payload=_NULL)
        return IncomingRecord(
            topic=self._route.topic,
            partition=shard,
            offset=outbox_id,
            key=key.encode(),
            value=encode_message(pointer, outbox_id=outbox_id, service=self._route.service, by_reference=True),
        )


class TableBroker(Broker):
    """``open_rows`` gives the published rows of a route to a new member of its group."""

    capabilities = Capabilities(keeps_records=False)

    def __init__(self, *, open_rows: OpenRows) -> None:
        self._open_rows = open_rows

    def producer(self, *, client_id: str) -> Producer:  # noqa: ARG002 - nobody to introduce oneself to
        return TableProducer()

    def subscribe(self, route: ServiceRoute, *, client_id: str) -> Subscription:  # noqa: ARG002
        return TableSubscription(route, self._open_rows(route))

    def topics(self, routes: Sequence[ServiceRoute]) -> list[TopicState]:
        return [TopicState(route.topic, exists=True, partitions=1) for route in routes]

    def create_topics(
        self,
        routes: Sequence[ServiceRoute],
        *,
        partitions: int | None = None,  # noqa: ARG002 - a table has none
        replication: int | None = None,  # noqa: ARG002
    ) -> list[TopicState]:
        return self.topics(routes)

    def positions(self, route: ServiceRoute) -> Positions | None:  # noqa: ARG002 - the table says it itself
        return None

    def close(self) -> None:
        """Hold nothing."""
