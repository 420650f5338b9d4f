"""A member of a Kafka group: how it joins, reads and commits, and how it takes partitions over and hands them on.

They move one by one, and the rest goes on meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from kafka import AsyncConsumerRebalanceListener, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import IllegalStateError, KafkaError, KafkaTimeoutError
from kafka.structs import OffsetAndMetadata

from outbox.brokers.base import IncomingRecord
from outbox.brokers.kafka.client import ClientFactory, describe
from outbox.brokers.kafka.poll import PollFullError
from outbox.brokers.kafka.private import Part, close_client, look_up
from outbox.brokers.kafka.ways import read_whatever_lies_there
from outbox.declarations.routes import ServiceRoute
from outbox.log_text import get_logger

logger = get_logger(__name__)

SESSION_TIMEOUT_MS: Final = 6_000
"""The least that brokers allow by default; with a heartbeat each 2 s, a killed member's partitions move within 10 s."""

HEARTBEAT_MS: Final = 2_000

REBALANCE_TIMEOUT_MS: Final = 60_000
"""What a rebalance may take: kafka-python sends ``max_poll_interval_ms``; the poll thread polls all the time."""

FETCH_MAX_BYTES: Final = 8 * 1024 * 1024

_JOIN_S: Final = 1.0
_POLL_S: Final = 0.2
_CLOSE_TIMEOUT_S: Final = 3.0
_LOOK_S: Final = 0.01


class Owner(Protocol):
    """Whose partitions they are. Called on the client's I/O thread: it must not wait."""

    @property
    def revoke_timeout_s(self) -> float: ...

    def begin(self, partitions: Iterable[int]) -> None:
        """Take ``partitions`` over."""

    def begin_leaving(self, partitions: Iterable[int]) -> None:
        """Hand out nothing more of ``partitions``."""

    def awaits_commits(self, partitions: Iterable[int]) -> bool:
        """Say whether records of ``partitions`` are in the caller's hands and not committed."""

    def end(self, partitions: Iterable[int]) -> None:
        """Let go of ``partitions``."""


class OwnedPartitionsAssignor(CooperativeStickyAssignor):  # type: ignore[misc]  # kafka-python has no types
    """The cooperative assignor, saying truly what this member owns.

    In kafka-python 3.0 it says what it was assigned last, also after the group has thrown it out. The leader then
    holds such a partition back for its supposed owner to revoke, which has nothing to revoke: nobody gets it until
    something else has the group put together anew.
    """

    consumer: Any = None

    def metadata(self, topics: Any) -> Any:
        self.member_assignment = sorted(self.consumer.assignment()) if self.consumer is not None else []
        return super().metadata(topics)


class RebalanceListener(AsyncConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Waits for the commits of a partition that moves, within a bound, while heartbeats and commits go on."""

    def __init__(self, owner: Owner, network: Any) -> None:
        self._owner = owner
        # The only way to wait on the I/O thread without holding it up: commits need it.
        self._sleep: Callable[[float], Any] | None = look_up(Part.HANDING_OVER, network, "_net.sleep")

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._owner.begin(_numbers(assigned))

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        partitions = _numbers(revoked)
        self._owner.begin_leaving(partitions)
        deadline = time.monotonic() + self._owner.revoke_timeout_s
        while self._sleep and self._owner.awaits_commits(partitions) and time.monotonic() < deadline:
            await self._sleep(_LOOK_S)
        self._owner.end(partitions)

    async def on_partitions_lost(self, lost: Iterable[Any]) -> None:
        self._owner.end(_numbers(lost))


class GroupMember:
    """One client from its making to its end. One thread calls it, but for ``commit``."""

    def __init__(self, clients: ClientFactory, route: ServiceRoute, *, client_id: str, owner: Owner) -> None:
        self._topic = route.topic
        self._group = route.group
        defaults = {
            "session_timeout_ms": SESSION_TIMEOUT_MS,
            "heartbeat_interval_ms": HEARTBEAT_MS,
            "max_poll_interval_ms": max(REBALANCE_TIMEOUT_MS, round(owner.revoke_timeout_s * 2_000)),
            "fetch_max_bytes": FETCH_MAX_BYTES,
            "metrics_enabled": False,
        }
        assignor = OwnedPartitionsAssignor()
        fixed = {
            "group_id": route.group,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "partition_assignment_strategy": [assignor],
        }
        self._consumer, self._network = clients.consumer(defaults, client_id=client_id, fixed=fixed)
        assignor.consumer = self._consumer
        self._room = read_whatever_lies_there(self._consumer)
        coordinator = look_up(Part.JOINING, self._consumer, "_coordinator")
        names = ("rejoining", "request_rejoin", "need_rejoin", "poll")
        self._coordinator = coordinator if look_up(Part.JOINING, coordinator, *names) else None
        self._consumer.subscribe([route.topic], listener=RebalanceListener(owner, self._network))
        self._learn_of_topic(clients.options.request_timeout_seconds)

    def join(self) -> bool:
        """Join the group where that is due; say whether it is done.

        ``poll`` would join too, but in 3.0 it loses track of a join that is not done when its time is up:

        * One that is answered between two calls is forgotten and another one asked for; with short time-outs that has
          no end, and every member has to join again each time. So this waits long, and for nothing but the join.
        * Where changed metadata was the reason, it sees no reason left between the answers to JoinGroup and SyncGroup;
          the member then never takes its partitions and sends no heartbeats. So what was begun is asked for again.
        """
        coordinator = self._coordinator
        if coordinator is None:
            return True  # ``read`` joins
        if coordinator.rejoining:
            coordinator.request_rejoin()
        return not coordinator.need_rejoin() or coordinator.poll(timeout_ms=_JOIN_S * 1000)

    def read(self, max_records: int, *, max_bytes: int) -> dict[int, list[IncomingRecord]]:
        """Wait a moment for records; return up to ``max_records`` by partition, the last going beyond ``max_bytes``."""
        consumer = self._consumer
        paused = consumer.paused()
        if paused:
            consumer.resume(*paused)
        joins = self._coordinator is None and not consumer.assignment()
        return self._poll(max_records, max_bytes=max_bytes, timeout_s=_JOIN_S if joins else _POLL_S)

    def stand_by(self) -> dict[int, list[IncomingRecord]]:
        """Keep the membership without reading; return a record of a partition that was assigned in this moment."""
        consumer = self._consumer
        consumer.pause(*consumer.assignment())
        return self._poll(1, max_bytes=1, timeout_s=0.0)

    def _poll(self, max_records: int, *, max_bytes: int, timeout_s: float) -> dict[int, list[IncomingRecord]]:
        def poll() -> dict[int, list[IncomingRecord]]:
            return _by_partition(self._consumer.poll(timeout_ms=timeout_s * 1000, max_records=max_records))

        self._room.left = max_bytes
        try:
            return poll()
        except PollFullError:  # that is said of the poll before
            return poll()

    def positions(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the offset to be read next by partition, without those for which the client has none.

        It lies behind what the client passes over and gives to nobody: markers and, with ``read_committed``, aborted
        records of transactions. Where the client does not know yet, it is waited for, for as long as ``read`` waits.

        :raises KafkaError: as ``read`` raises it.
        """
        found: dict[int, int] = {}
        deadline = time.monotonic() + _POLL_S
        for partition in partitions:
            wait_ms = max(0.0, deadline - time.monotonic()) * 1000
            try:
                position = self._consumer.position(TopicPartition(self._topic, partition), timeout_ms=wait_ms)
            except (IllegalStateError, KafkaTimeoutError, KeyError):
                continue  # it went to another member, or the brokers do not answer
            if position is not None:
                found[partition] = position
        return found

    def commit(self, offsets: Mapping[int, int], *, timeout_s: float) -> None:
        """Commit the offset of the next record to read by partition; any thread may.

        :raises KafkaError, RuntimeError, OSError: whatever the client raises.
        """
        named = {
            TopicPartition(self._topic, part): OffsetAndMetadata(offset, "", -1) for part, offset in offsets.items()
        }
        self._consumer.commit(named, timeout_ms=timeout_s * 1000)

    def check_reachable(self, *, timeout_s: float) -> None:
        """Ask the brokers for anything, as ``read`` says nothing of an outage.

        :raises KafkaError: they do not answer.
        """
        self._consumer.end_offsets([TopicPartition(self._topic, 0)], timeout_ms=timeout_s * 1000)

    @property
    def is_unauthorized(self) -> bool:
        """Whether the brokers let us not read the topic."""
        unauthorized = look_up(Part.NETWORK, self._network, "cluster.unauthorized_topics") if self._network else None
        return self._topic in (unauthorized or ())

    def close(self) -> None:
        """Leave the group, end the client's thread and its connections."""

        def close() -> None:
            self._consumer.close(autocommit=False, timeout_ms=_CLOSE_TIMEOUT_S * 1000)

        try:
            close_client(self._consumer, close, self._network)
        except (KafkaError, RuntimeError, OSError) as error:
            logger.warning(
                "Kafka group %s: a member could not leave, its session runs out: %s", self._group, describe(error)
            )
            if self._network is not None:
                self._network.close()

    def _learn_of_topic(self, timeout_s: float) -> None:
        """Know the topic before joining: a leader that does not gives its partitions to nobody, and all join again."""
        request_update = look_up(Part.NETWORK, self._network, "cluster.request_update") if self._network else None
        if request_update is None:
            self._consumer.partitions_for_topic(self._topic)
            return
        informed = threading.Event()
        request_update().add_both(lambda _: informed.set())
        informed.wait(timeout_s)


def _by_partition(found: Mapping[Any, Iterable[Any]]) -> dict[int, list[IncomingRecord]]:
    return {place.partition: [_incoming(record) for record in records] for place, records in found.items()}


def _incoming(record: Any) -> IncomingRecord:
    headers = record.headers
    return IncomingRecord(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=record.key,
        value=record.value,
        header_source=headers if callable(headers) else tuple((name, value or b"") for name, value in headers),
        header_bytes=headers.size_bytes if callable(headers) else 0,
        fault=getattr(headers, "fault", ""),
    )


def _numbers(partitions: Iterable[Any]) -> list[int]:
    return [each.partition for each in partitions]
