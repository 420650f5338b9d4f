"""A broker in this process's memory, for tests: topics with partitions, groups with offsets, outages on demand.

It keeps the same contract as the real ones, by the same suite of tests. Topics are there at once when they are first
used, unless ``creates_topics`` is False.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from outbox.brokers._memory_subscription import MemoryGroup, MemorySubscription
from outbox.brokers.base import (
    Broker,
    Capabilities,
    IncomingRecord,
    OutgoingRecord,
    Positions,
    Refusal,
    SendReport,
    TopicState,
)
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import BrokerError, BrokerUnavailableError, ConfigurationError
from outbox.wire.envelope import Headers

Refuses = Callable[[OutgoingRecord], str | None]


@dataclass(slots=True)
class _Topic:
    partitions: list[list[IncomingRecord]]
    groups: dict[str, MemoryGroup] = field(default_factory=dict)


class MemoryBroker(Broker):
    """Holds everything; ``producer()`` and ``subscribe()`` give views of it. Safe to share between threads."""

    capabilities = Capabilities(keeps_records=True)

    def __init__(self, *, partitions: int = 6, max_record_bytes: int = 1_000_000, creates_topics: bool = True) -> None:
        for name, value in (("partitions", partitions), ("max_record_bytes", max_record_bytes)):
            if value < 1:
                raise ConfigurationError(f"options of the memory broker: {name!r} must be at least 1, got {value}")
        self.max_record_bytes = max_record_bytes
        self._partitions = partitions
        self._creates_topics = creates_topics
        self._changed = threading.Condition(threading.RLock())
        """Guards all state of the broker and of its views."""
        self._topics: dict[str, _Topic] = {}
        self._refuses: Refuses | None = None
        self._is_away = False

    # --- what tests do to it -------------------------------------------------------------------------------------

    def go_away(self) -> None:
        """Begin an outage: every call fails, and what was sent and not reported yet is unanswered."""
        with self._changed:
            self._is_away = True
            self._changed.notify_all()

    def come_back(self) -> None:
        """End the outage; topics, offsets and members are as they were."""
        with self._changed:
            self._is_away = False
            self._changed.notify_all()

    def refuse(self, refuses: Refuses | None) -> None:
        """Refuse records for which ``refuses`` returns a reason; None takes it back."""
        with self._changed:
            self._refuses = refuses

    def put(
        self,
        topic: str,
        *,
        value: bytes | None,
        key: bytes | None = None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> None:
        """Append a record as foreign software would."""
        with self._changed:
            found = self.topic_of(topic)
            if partition is None:
                partition = _partition_of(key or b"", len(found.partitions))
            log = found.partitions[partition]
            log.append(IncomingRecord(topic, partition, len(log), key, value, headers))
            self._changed.notify_all()

    def records(self, topic: str) -> list[IncomingRecord]:
        """Return everything on ``topic``, partition by partition."""
        with self._changed:
            found = self._topics.get(topic)
            return [record for log in found.partitions for record in log] if found else []

    # --- the contract --------------------------------------------------------------------------------------------

    def producer(self, *, client_id: str) -> MemoryProducer:  # noqa: ARG002 - nobody to introduce oneself to
        with self._changed:
            self.check_here()
            return MemoryProducer(self)

    def subscribe(self, route: ServiceRoute, *, client_id: str) -> MemorySubscription:  # noqa: ARG002
        with self._changed:
            self.check_here()
            return MemorySubscription(self, route)

    def topics(self, routes: Sequence[ServiceRoute]) -> list[TopicState]:
        with self._changed:
            self.check_here()
            return [self._state(route.topic) for route in routes]

    def create_topics(
        self,
        routes: Sequence[ServiceRoute],
        *,
        partitions: int | None = None,
        replication: int | None = None,  # noqa: ARG002 - there is one copy
    ) -> list[TopicState]:
        with self._changed:
            self.check_here()
            for route in routes:
                if route.topic not in self._topics:
                    self._create(route.topic, partitions or self._partitions)
            return self.topics(routes)

    def positions(self, route: ServiceRoute) -> Positions:
        with self._changed:
            self.check_here()
            found = self._topics.get(route.topic)
            if found is None:
                return Positions(first={}, end={}, committed={})
            group = found.groups.get(route.group, MemoryGroup())
            return Positions(
                first=dict.fromkeys(range(len(found.partitions)), 0),
                end={number: len(log) for number, log in enumerate(found.partitions)},
                committed=dict(group.committed),
            )

    def close(self) -> None:
        """Hold nothing."""

    # --- for producers and subscriptions, under the lock ---------------------------------------------------------

    @property
    def changed(self) -> threading.Condition:
        return self._changed

    @property
    def is_away(self) -> bool:
        return self._is_away

    def check_here(self) -> None:
        if self._is_away:
            raise BrokerUnavailableError("the memory broker is away")

    def topic_of(self, topic: str) -> _Topic:
        if topic not in self._topics:
            if not self._creates_topics:
                raise BrokerUnavailableError(f"topic {topic!r} does not exist")
            self._create(topic, self._partitions)
        return self._topics[topic]

    def reason_to_refuse(self, record: OutgoingRecord) -> str | None:
        if len(record.value) > self.max_record_bytes:
            return f"value of {len(record.value):,} bytes is larger than {self.max_record_bytes:,}"
        return self._refuses(record) if self._refuses else None

    def _create(self, topic: str, partitions: int) -> None:
        self._topics[topic] = _Topic([[] for _ in range(partitions)])

    def _state(self, topic: str) -> TopicState:
        found = self._topics.get(topic)
        return TopicState(topic, exists=found is not None, partitions=len(found.partitions) if found else 0)


class _MemoryBatch:
    """A ``PendingSend``: the records are on their topics, unless the broker went away before it could say so."""

    def __init__(self, broker: MemoryBroker, taken: tuple[int, ...], refused: tuple[Refusal, ...]) -> None:
        self._broker, self._taken, self._refused = broker, taken, refused

    def report(self, timeout: timedelta) -> SendReport:  # noqa: ARG002 - nothing to wait for
        if self._taken and self._broker.is_away:
            return SendReport((), self._refused, unanswered=self._taken, outage="the memory broker is away")
        return SendReport(self._taken, self._refused)


class MemoryProducer:
    """A ``Producer``."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._closed = False

    def send(self, records: Sequence[OutgoingRecord]) -> _MemoryBatch:
        taken: list[int] = []
        refused: list[Refusal] = []
        with self._broker.changed:
            if self._closed:
                raise BrokerError("the producer is closed")
            self._broker.check_here()
            for record in records:
                reason = self._broker.reason_to_refuse(record)
                if reason:
                    refused.append(Refusal(record.outbox_id, reason))
                    continue
                self._broker.put(record.topic, value=record.value, key=record.key.encode(), headers=record.headers)
                taken.append(record.outbox_id)
        return _MemoryBatch(self._broker, tuple(taken), tuple(refused))

    def close(self) -> None:
        self._closed = True


def _partition_of(key: bytes, partitions: int) -> int:
    return zlib.crc32(key) % partitions
