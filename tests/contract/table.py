"""The table broker as the contract suite drives it: the real one, and around it what relay and consumer do to rows.

Sending is nothing to this broker. A row becomes a message when the relay marks it, and is none any more when the
consumer does. So the harness's ``send`` inserts rows, ``report`` marks them published and ``commit`` marks them
consumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from outbox.brokers.base import (
    Broker,
    IncomingRecord,
    OutgoingRecord,
    PendingSend,
    Positions,
    Producer,
    SendReport,
    Subscription,
    TopicState,
)
from outbox.brokers.table import TableBroker
from outbox.declarations.routes import ServiceRoute
from outbox.registry.catalog import repository_of, service_models
from outbox.storage.repository import OutboxRepository
from outbox.wire.envelope import Headers
from outbox.workers import embedded
from tests.contract.brokers import BrokerHarness, ids

EVENT_TYPE = "contract.record"
REDELIVER_AFTER = timedelta(minutes=5)
CLAIM_LIMIT = 10_000


class TableHarness(BrokerHarness):
    """Each route is one of the project's services, whose tables are empty before a test."""

    name = "table"
    features = frozenset({"members", "redelivery"})

    def __init__(self) -> None:
        self.broker: Broker = WorkedTableBroker(TableBroker(open_rows=embedded.open_rows))
        self._services: Iterator[str] = iter(service_models())

    def route(self) -> ServiceRoute:
        return repository_of(next(self._services)).route

    def small_route(self, *, partitions: int = 3) -> ServiceRoute:
        raise NotImplementedError("a table takes whatever the event's contract does")

    def put(self, route: ServiceRoute, *, value: bytes | None, key: bytes | None, headers: Headers = ()) -> None:
        raise NotImplementedError("there is no topic beside the table")

    def go_away(self) -> None:
        raise NotImplementedError("there is no broker beside the database")

    def come_back(self) -> None:
        raise NotImplementedError("there is no broker beside the database")


class WorkedTableBroker(Broker):
    """Hands everything to ``real``, and does to rows what relay and consumer do."""

    capabilities = TableBroker.capabilities

    def __init__(self, real: TableBroker) -> None:
        self._real = real
        self._subscriptions: list[Subscription] = []

    def producer(self, *, client_id: str) -> Producer:
        return _Relaying(self._real.producer(client_id=client_id))

    def subscribe(self, route: ServiceRoute, *, client_id: str) -> Subscription:
        subscription = _Consuming(self._real.subscribe(route, client_id=client_id), repository_of(route.service))
        self._subscriptions.append(subscription)
        return subscription

    def topics(self, routes: Sequence[ServiceRoute]) -> list[TopicState]:
        return self._real.topics(routes)

    def create_topics(
        self, routes: Sequence[ServiceRoute], *, partitions: int | None = None, replication: int | None = None
    ) -> list[TopicState]:
        return self._real.create_topics(routes, partitions=partitions, replication=replication)

    def positions(self, route: ServiceRoute) -> Positions | None:
        return self._real.positions(route)

    def close(self) -> None:
        """End also what a test that failed left behind: a member would go on into the next test."""
        for subscription in self._subscriptions:
            subscription.close()
        self._real.close()


@dataclass(frozen=True, slots=True)
class _Claimed:
    """A batch that was claimed and handed over; its rows are marked when it is answered for."""

    pending: PendingSend
    repository: OutboxRepository | None
    claimed_at: Any = None

    def report(self, timeout: timedelta) -> SendReport:
        report = self.pending.report(timeout)
        if self.repository is not None:
            marked = self.repository.mark_published(
                report.acknowledged, claimed_at=self.claimed_at, redeliver_after=REDELIVER_AFTER
            )
            assert marked.count == len(report.acknowledged)
        return report


class _Relaying:
    """A ``Producer``: records become rows first."""

    def __init__(self, real: Producer) -> None:
        self._real = real

    def send(self, records: Sequence[OutgoingRecord]) -> _Claimed:
        if not records:
            return _Claimed(self._real.send(records), None)
        [topic] = {record.topic for record in records}
        [repository] = [each for each in map(repository_of, service_models()) if each.route.topic == topic]
        _insert(repository.route, records)
        claim = repository.claim(shards=None, limit=CLAIM_LIMIT, max_length=0)
        assert {row.id for row in claim.rows} >= {record.outbox_id for record in records}
        return _Claimed(self._real.send(records), repository, claim.claimed_at)

    def close(self) -> None:
        self._real.close()


class _Consuming:
    """A ``Subscription``: what is committed is consumed, and so no message any more."""

    def __init__(self, real: Subscription, repository: OutboxRepository) -> None:
        self._real, self._repository = real, repository

    @property
    def assignments(self) -> Mapping[int, int]:
        return self._real.assignments

    def receive(self, *, max_records: int, timeout: timedelta) -> list[IncomingRecord]:
        return self._real.receive(max_records=max_records, timeout=timeout)

    def commit(self, records: Sequence[IncomingRecord]) -> None:
        self._repository.mark_consumed(ids(records))
        self._real.commit(records)

    def hand_back(self, records: Sequence[IncomingRecord]) -> None:
        self._real.hand_back(records)

    def close(self) -> None:
        self._real.close()


def _insert(route: ServiceRoute, records: Sequence[OutgoingRecord]) -> None:
    model = service_models()[route.service]
    model.objects.using(route.database).bulk_create(
        model(
            id=record.outbox_id,
            event_type=EVENT_TYPE,
            service_name=route.service,
            topic=route.topic,
            message_key=record.key,
            payload=record.value.decode(),
        )
        for record in records
    )
