"""What the contract suite needs of a backend beside its ``Broker``: topics, foreign records, outages on demand.

To have another backend tested: subclass ``BrokerHarness``, list it in ``HARNESSES``, and leave out of ``features`` what
it cannot do. One that needs a database has its harness from a fixture of its own, as in ``test_table_broker.py``.
"""

from __future__ import annotations

import abc
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from django.db import connections

from outbox.brokers.base import Broker, IncomingRecord, OutgoingRecord, Subscription
from outbox.brokers.memory import MemoryBroker
from outbox.declarations.routes import ServiceRoute
from outbox.wire.envelope import Headers, decode_message
from tests.services import require
from tests.waiting import wait_until

ANSWER_TIMEOUT = timedelta(seconds=30)
RECEIVE_TIMEOUT = timedelta(milliseconds=200)
SMALL_RECORD_BYTES = 20_000

ALL_FEATURES = frozenset(
    {
        "foreign",
        "groups",  # several on one topic, each with all its records
        "members",
        "offsets",  # reading goes on behind what is in hand; a commit covers all before it
        "outage",
        "positions",
        "redelivery",
        "refusal",
        "topics",
        "transactions",  # other producers may write in them, and the log has their markers
        "values",  # what was sent as value and headers comes through
    }
)


class BrokerHarness(abc.ABC):
    """One backend under test."""

    name: ClassVar[str]
    features: ClassVar[frozenset[str]] = ALL_FEATURES
    takeover_timeout_s: ClassVar[float] = 30.0
    """How long a partition may take to come to another member, rebalance and all."""

    broker: Broker

    def need(self, *features: str) -> None:
        """Skip the test where the backend cannot do this at all."""
        lacking = set(features) - self.features
        if lacking:
            pytest.skip(f"the {self.name} broker has no {', '.join(sorted(lacking))}")

    def route(self) -> ServiceRoute:
        """Return a route of its own for a test, its topic not created."""
        unique = uuid.uuid4().hex[:12]
        return ServiceRoute(
            service="contract",
            table="contract_outbox_messages",
            topic=f"contract.{unique}",
            group=f"contract-{unique}",
        )

    def ready_route(self, *, partitions: int = 3) -> ServiceRoute:
        """Return a route whose topic exists."""
        route = self.route()
        self.broker.create_topics([route], partitions=partitions)
        return route

    @abc.abstractmethod
    def small_route(self, *, partitions: int = 3) -> ServiceRoute:
        """Return a route whose topic takes records of ``SMALL_RECORD_BYTES`` at most."""

    @abc.abstractmethod
    def put(self, route: ServiceRoute, *, value: bytes | None, key: bytes | None, headers: Headers = ()) -> None:
        """Put a record on the topic as foreign software would."""

    def put_in_transaction(self, route: ServiceRoute, *values: bytes, commit: bool = True, partition: int = 0) -> None:
        """Put records on a partition as a producer does that writes in a transaction; end that, aborted or not."""
        raise NotImplementedError

    @abc.abstractmethod
    def go_away(self) -> None:
        """Begin an outage."""

    @abc.abstractmethod
    def come_back(self) -> None:
        """End it."""

    def close(self) -> None:
        self.broker.close()


class MemoryHarness(BrokerHarness):
    name = "memory"
    features = ALL_FEATURES - {"transactions"}

    def __init__(self) -> None:
        self.broker: MemoryBroker = MemoryBroker()

    def small_route(self, *, partitions: int = 3) -> ServiceRoute:
        self.broker.max_record_bytes = SMALL_RECORD_BYTES
        return self.ready_route(partitions=partitions)

    def put(self, route: ServiceRoute, *, value: bytes | None, key: bytes | None, headers: Headers = ()) -> None:
        self.broker.put(route.topic, value=value, key=key, headers=headers)

    def go_away(self) -> None:
        self.broker.go_away()

    def come_back(self) -> None:
        self.broker.come_back()


class KafkaHarness(BrokerHarness):
    name = "kafka"

    def __init__(self, *, request_timeout_seconds: float = 10.0, **options: Any) -> None:
        from outbox.brokers.kafka import KafkaBroker

        self._servers = require("kafka")
        self.broker = KafkaBroker(
            bootstrap_servers=self._servers, request_timeout_seconds=request_timeout_seconds, **options
        )
        self._writer: Any = None
        self._transactional: Any = None

    def small_route(self, *, partitions: int = 3) -> ServiceRoute:
        from kafka import KafkaAdminClient

        route = self.route()
        admin = KafkaAdminClient(bootstrap_servers=self._servers)
        try:
            configs = {"max.message.bytes": str(SMALL_RECORD_BYTES)}
            wanted = {"num_partitions": partitions, "replication_factor": -1, "configs": configs}
            admin.create_topics({route.topic: wanted}, wait_for_metadata=True)
        finally:
            admin.close()
        return route

    def put(self, route: ServiceRoute, *, value: bytes | None, key: bytes | None, headers: Headers = ()) -> None:
        from kafka import KafkaProducer

        if self._writer is None:
            self._writer = KafkaProducer(bootstrap_servers=self._servers)
        # One partition for all, so that records without a key keep their order too.
        self._writer.send(route.topic, value=value, key=key, headers=list(headers), partition=0).get(timeout=30)

    @contextmanager
    def transaction(self, *, commit: bool = True) -> Iterator[Any]:
        """Give a ``KafkaProducer`` in a transaction, which ends behind the block."""
        from kafka import KafkaProducer

        if self._transactional is None:
            name = f"contract-{uuid.uuid4().hex[:12]}"
            self._transactional = KafkaProducer(bootstrap_servers=self._servers, transactional_id=name)
            self._transactional.init_transactions()
        self._transactional.begin_transaction()
        yield self._transactional
        self._transactional.flush(timeout=30)
        (self._transactional.commit_transaction if commit else self._transactional.abort_transaction)()

    def put_in_transaction(self, route: ServiceRoute, *values: bytes, commit: bool = True, partition: int = 0) -> None:
        with self.transaction(commit=commit) as producer:
            for value in values:
                producer.send(route.topic, value=value, partition=partition)

    def go_away(self) -> None:
        from scripts.services import control

        control.kill("kafka")

    def come_back(self) -> None:
        from scripts.services import control

        control.start("kafka")

    def close(self) -> None:
        for writer in (self._writer, self._transactional):
            if writer is not None:
                writer.close(timeout=5)
        super().close()


HARNESSES: Sequence[type[BrokerHarness]] = (MemoryHarness, KafkaHarness)


# --- helpers for tests -----------------------------------------------------------------------------------------------


def records(route: ServiceRoute, count: int, *, keys: int = 5, first_id: int = 1) -> list[OutgoingRecord]:
    """Return ``count`` records in the order of their ids, over ``keys`` keys; the value says the id."""
    return [
        OutgoingRecord(
            outbox_id=number, topic=route.topic, key=f"key-{number % keys}", value=str(number).encode(), headers=()
        )
        for number in range(first_id, first_id + count)
    ]


def publish(harness: BrokerHarness, batch: Sequence[OutgoingRecord]) -> None:
    """Send ``batch`` and see it acknowledged."""
    producer = harness.broker.producer(client_id="contract-writer")
    try:
        report = producer.send(batch).report(ANSWER_TIMEOUT)
    finally:
        producer.close()
    assert report.acknowledged == tuple(record.outbox_id for record in batch), report


def receive_exactly(
    subscription: Subscription, count: int, *, max_records: int = 500, timeout_s: float = 30.0, commit: bool = False
) -> list[IncomingRecord]:
    """Receive ``count`` records, no more; ``commit`` each batch before the next."""
    received: list[IncomingRecord] = []

    def enough() -> bool:
        batch = subscription.receive(max_records=min(max_records, count - len(received)), timeout=RECEIVE_TIMEOUT)
        if commit and batch:
            subscription.commit(batch)
        received.extend(batch)
        return len(received) >= count

    wait_until(enough, timeout=timeout_s, interval=0, message=f"{count} records")
    return received


def outbox_id(record: IncomingRecord) -> int:
    """Return the id that a record of ``records()`` says, or that a message of the outbox does; -1 without a value."""
    value = record.value or b"-1"
    return decode_message(value).outbox_id if value.startswith(b"{") else int(value)


def ids(received: Iterable[IncomingRecord]) -> list[int]:
    return [outbox_id(record) for record in received]


def ids_by_key(received: Iterable[IncomingRecord]) -> dict[bytes | None, list[int]]:
    found: dict[bytes | None, list[int]] = {}
    for record in received:
        found.setdefault(record.key, []).append(outbox_id(record))
    return found


class Member:
    """A member of a group on a thread of its own: receives, and commits at once."""

    def __init__(self, harness: BrokerHarness, route: ServiceRoute, *, client_id: str) -> None:
        self.received: list[IncomingRecord] = []
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._subscription = harness.broker.subscribe(route, client_id=client_id)
        self._thread = threading.Thread(target=self._run, name=client_id, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                batch = self._subscription.receive(max_records=50, timeout=RECEIVE_TIMEOUT)
                if batch:
                    self.received.extend(batch)
                    self._subscription.commit(batch)
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            self.error = error
        finally:
            self._subscription.close()
            connections.close_all()  # those of this thread

    def leave(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


def elapsed_s(since: float) -> float:
    return time.monotonic() - since
