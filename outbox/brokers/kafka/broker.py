"""Apache Kafka through kafka-python; the modules of this package are the only ones that import it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from kafka import TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import (
    KafkaError,
    NoError,
    RetriableError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from outbox.brokers.base import Broker, Capabilities, Positions, TopicState
from outbox.brokers.kafka.client import ClientFactory, describe
from outbox.brokers.kafka.options import KafkaOptions
from outbox.brokers.kafka.private import close_client
from outbox.brokers.kafka.producer import KafkaRecordProducer
from outbox.brokers.kafka.subscription import KafkaSubscription
from outbox.declarations.routes import ServiceRoute

_RETRY_PAUSE_S: Final = 0.1

T = TypeVar("T")


class KafkaBroker(Broker):
    """Brokers of Apache Kafka 2.5 or newer. Nothing connects before it is asked for something.

    The options are those of ``KafkaOptions``.
    """

    capabilities = Capabilities(keeps_records=True)

    def __init__(self, *, bootstrap_servers: str | list[str], **options: Any) -> None:
        self._options = KafkaOptions.parse({"bootstrap_servers": bootstrap_servers, **options})
        self._clients = ClientFactory(self._options)
        self._lock = threading.Lock()
        self._admin: Any = None

    def producer(self, *, client_id: str) -> KafkaRecordProducer:
        return KafkaRecordProducer(self._clients, client_id=client_id)

    def subscribe(self, route: ServiceRoute, *, client_id: str) -> KafkaSubscription:
        return KafkaSubscription(self._clients, route, client_id=client_id)

    def topics(self, routes: Sequence[ServiceRoute]) -> list[TopicState]:
        found = self._describe([route.topic for route in routes])
        return [_state(route.topic, found.get(route.topic)) for route in routes]

    def create_topics(
        self, routes: Sequence[ServiceRoute], *, partitions: int | None = None, replication: int | None = None
    ) -> list[TopicState]:
        missing = sorted({state.topic for state in self.topics(routes) if not state.exists})
        problems = self._create(missing, partitions=partitions, replication=replication) if missing else {}
        states = self._await_leaders(routes, without=problems.keys())
        return [
            TopicState(state.topic, exists=False, problem=problems[state.topic])
            if state.topic in problems and not state.exists
            else state
            for state in states
        ]

    def positions(self, route: ServiceRoute) -> Positions:
        state = self._describe([route.topic]).get(route.topic, {})
        parts = [TopicPartition(route.topic, part["partition_index"]) for part in state.get("partitions", ())]
        if not parts:
            return Positions(first={}, end={}, committed={})
        isolation = self._clients.isolation_level

        def ask(admin: Any) -> Positions:
            # The group first: an end read before its offsets could lie behind them.
            committed = admin.list_group_offsets({route.group: parts})[route.group]
            first = admin.list_partition_offsets(dict.fromkeys(parts, OffsetSpec.EARLIEST))
            # As far as this group may read: with read_committed not beyond a transaction that is still open.
            end = admin.list_partition_offsets(dict.fromkeys(parts, OffsetSpec.LATEST), isolation_level=isolation)
            return Positions(
                first=_by_partition(first),
                end=_by_partition(end),
                committed={part: offset for part, offset in _by_partition(committed).items() if offset >= 0},
            )

        return self._ask("cannot read positions", ask)

    def close(self) -> None:
        with self._lock:
            admin, self._admin = self._admin, None
        if admin is not None:
            close_client(admin, admin.close)

    # --- topics --------------------------------------------------------------------------------------------------

    def _describe(self, topics: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        if not topics:
            return {}
        named = sorted(set(topics))
        found = self._ask("cannot describe topics", lambda admin: admin.describe_topics(named))
        return {topic["name"]: topic for topic in found}

    def _create(self, topics: Sequence[str], *, partitions: int | None, replication: int | None) -> dict[str, str]:
        """Create ``topics``; return why those that could not be."""
        wanted = {
            "num_partitions": self._options.partitions if partitions is None else partitions,
            "replication_factor": self._options.replication if replication is None else replication,
        }
        answer = self._ask(
            "cannot create topics",
            lambda admin: admin.create_topics(dict.fromkeys(topics, wanted), raise_errors=False),
        )
        problems = {}
        for topic in answer["topics"]:
            error = for_code(topic["error_code"])
            if error not in (NoError, TopicAlreadyExistsError):
                problems[topic["name"]] = describe(error(topic.get("error_message") or None))
        return problems

    def _await_leaders(self, routes: Sequence[ServiceRoute], *, without: Any) -> list[TopicState]:
        """Return the topics' states once each is ready, or as they are when the time is up."""
        deadline = time.monotonic() + self._options.topic_timeout_seconds
        while True:
            states = self.topics(routes)
            waiting = [state for state in states if state.problem or not (state.exists or state.topic in without)]
            if not waiting or time.monotonic() >= deadline:
                return states
            time.sleep(_RETRY_PAUSE_S)

    # --- the admin client ----------------------------------------------------------------------------------------

    def _ask(self, what: str, question: Callable[[Any], T]) -> T:
        """Put ``question`` to an admin client, and to a new one when that fails: one keeps old news of the cluster.

        :raises BrokerUnavailableError: no answer within the time of one request.
        """
        deadline = time.monotonic() + self._options.request_timeout_seconds
        while True:
            try:
                with self._borrowed_admin() as admin:
                    return question(admin)
            except RetriableError as error:
                if time.monotonic() >= deadline:
                    raise self._clients.unavailable(what, error) from error
            except (KafkaError, RuntimeError, OSError) as error:
                raise self._clients.unavailable(what, error) from error
            time.sleep(_RETRY_PAUSE_S)

    @contextmanager
    def _borrowed_admin(self) -> Iterator[Any]:
        """Give the admin client to one caller at a time; one that failed is not used again."""
        with self._lock:
            if self._admin is None:
                self._admin = self._clients.admin()
            admin = self._admin
            try:
                yield admin
            except BaseException:
                self._admin = None
                close_client(admin, admin.close)
                raise


def _by_partition(offsets: Mapping[Any, Any]) -> dict[int, int]:
    return {part.partition: entry.offset for part, entry in offsets.items()}


def _state(topic: str, found: Mapping[str, Any] | None) -> TopicState:
    if found is None:
        return TopicState(topic, exists=False)
    error = for_code(found["error_code"])
    if error is UnknownTopicOrPartitionError:
        return TopicState(topic, exists=False)
    partitions = found["partitions"]
    if error is not NoError:
        return TopicState(topic, exists=True, partitions=len(partitions), problem=describe(error()))
    leaderless = sorted(part["partition_index"] for part in partitions if part["leader_id"] < 0)
    problem = f"no leader for partitions {leaderless}" if leaderless else "" if partitions else "no partitions yet"
    return TopicState(topic, exists=True, partitions=len(partitions), problem=problem)
