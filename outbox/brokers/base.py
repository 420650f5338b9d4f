"""What a broker does for the outbox: one small contract, kept by every backend and by one suite of tests.

A broker carries records; it never reads or writes outbox rows. All blocking calls have a bound. An outage is
``BrokerUnavailableError``; whatever concerns one record alone is a ``Refusal`` of that record.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec

from outbox.declarations.routes import ServiceRoute
from outbox.wire.envelope import Headers

assignment_numbers: Final[Iterator[int]] = itertools.count(1)
"""One for each time that a partition comes to a member, whichever subscription of this process it is."""


class OutgoingRecord(msgspec.Struct, frozen=True, gc=False):
    """A record to send; records of one ``key`` keep their order."""

    outbox_id: int
    topic: str
    key: str
    value: bytes
    headers: Headers
    sent_at: datetime | None = None
    """By the database's clock; None: by that of the process, which may be wrong."""


class HeaderReader(Protocol):
    """Reads the headers of a record when somebody asks: of most records nobody does."""

    def get(self, name: str) -> bytes | None:
        """Return the first value of a header, None where there is none; what is behind it is not read."""
        ...

    def __call__(self) -> Headers:
        """Return all of them in their order."""
        ...


class IncomingRecord(msgspec.Struct, frozen=True, gc=False):
    """A record as it came from the topic; nothing about it is trusted."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    header_source: Headers | HeaderReader = ()
    """The headers, or what reads them: hardly anybody asks."""
    header_bytes: int = 0
    """How much memory they take, as far as they are not read."""
    fault: str = ""
    """Why it stands for others that the subscription could not read; empty for a record of the topic."""

    @property
    def place(self) -> tuple[str, int, int]:
        """Return where it was: topic, partition and offset."""
        return self.topic, self.partition, self.offset

    @property
    def headers(self) -> Headers:
        """Return the headers in their order; a name may come twice."""
        return self.header_source if isinstance(self.header_source, tuple) else self.header_source()

    def header(self, name: str) -> bytes | None:
        """Return the first value of a header, None where there is none."""
        source = self.header_source
        if isinstance(source, tuple):
            return next((value for found, value in source if found == name), None)
        return source.get(name)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that the broker will never take, and why (too large, invalid, …)."""

    outbox_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class SendReport:
    """What became of a batch: every record is in exactly one of the three.

    ``unanswered`` records may or may not be on the topic: they are sent again.
    """

    acknowledged: tuple[int, ...]
    refused: tuple[Refusal, ...] = ()
    unanswered: tuple[int, ...] = ()
    outage: str = ""
    """Why ``unanswered`` is not empty."""


class PendingSend(Protocol):
    """A batch on its way."""

    def report(self, timeout: timedelta) -> SendReport:
        """Wait until every record is answered for, ``timeout`` at most; what is late is ``unanswered``."""
        ...


class Producer(Protocol):
    """Sends records. Safe to share between threads."""

    def send(self, records: Sequence[OutgoingRecord]) -> PendingSend:
        """Hand over a batch without waiting for its acknowledgement.

        :raises BrokerUnavailableError: nothing of the batch was handed over.
        """
        ...

    def close(self) -> None:
        """Let what is on its way finish, within a bound, and free the connection."""
        ...


class Subscription(Protocol):
    """One member of a service's consumer group. Used by one thread."""

    @property
    def assignments(self) -> Mapping[int, int]:
        """Return the member's partitions, as of the last ``receive`` or later, each with the number of its assignment.

        The number grows each time the partition comes to this member anew. A partition that is leaving is not in it.
        """
        ...

    def receive(self, *, max_records: int, timeout: timedelta) -> list[IncomingRecord]:
        """Return the next records in order per partition, or none after ``timeout``.

        Membership is kept up between calls, however long the caller takes.

        :raises BrokerUnavailableError: the broker is away; call again later, nothing is lost.
        :raises LostSubscriptionError: the subscription was closed or lost; subscribe again.
        """
        ...

    def commit(self, records: Sequence[IncomingRecord]) -> None:
        """Say that ``records``, and so all before them in their partitions, are done.

        Records of a partition that was taken away meanwhile are passed over: its new owner gets them again.
        What lies behind the last record and is given to nobody (a transaction's marker) the subscription passes itself,
        when every record that it has of that partition is committed.

        :raises BrokerUnavailableError: not committed; the records may come again.
        """
        ...

    def hand_back(self, records: Sequence[IncomingRecord]) -> None:
        """Say that the caller will not finish ``records``, nor any before them in their partitions.

        A partition need not wait for them when it leaves.
        They stay uncommitted, and come again to its next owner; to this member they do not, while the partition stays.
        A commit of them, or of any behind them, still counts.
        """
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


@dataclass(frozen=True, slots=True)
class Positions:
    """How far a topic and its consumer group are, by partition.

    ``committed`` has no entry where the group never committed; ``first`` is the oldest offset still kept; ``end`` is
    that of the next record, or of the first that the group may not read yet.
    """

    first: Mapping[int, int]
    end: Mapping[int, int]
    committed: Mapping[int, int]

    @property
    def lag(self) -> int:
        """Return how many offsets the group has not committed: records, and what else takes one (markers)."""
        return sum(
            max(0, end - max(self.committed.get(partition, 0), self.first.get(partition, 0)))
            for partition, end in self.end.items()
        )

    def passed(self, end: Mapping[int, int]) -> bool:
        """Say whether the group has committed everything before the ``end`` of an earlier moment."""
        return all(
            max(self.committed.get(partition, 0), self.first.get(partition, 0)) >= offset
            for partition, offset in end.items()
        )


@dataclass(frozen=True, slots=True)
class TopicState:
    """What is known of a service's topic."""

    topic: str
    exists: bool
    partitions: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do, asked instead of its type."""

    keeps_records: bool
    """Records live apart from the outbox rows, so they can get lost, be foreign, or come twice."""


class Broker(abc.ABC):
    """A backend, built from ``OUTBOX['BROKER']`` when a process starts to work, never at import."""

    capabilities: Capabilities

    @abc.abstractmethod
    def producer(self, *, client_id: str) -> Producer:
        """Return a producer.

        :raises BrokerUnavailableError: the broker is away.
        """

    @abc.abstractmethod
    def subscribe(self, route: ServiceRoute, *, client_id: str) -> Subscription:
        """Join the consumer group of ``route``.

        :raises BrokerUnavailableError: the broker is away.
        """

    @abc.abstractmethod
    def topics(self, routes: Sequence[ServiceRoute]) -> list[TopicState]:
        """Return the state of each route's topic.

        :raises BrokerUnavailableError: the broker is away.
        """

    @abc.abstractmethod
    def create_topics(
        self, routes: Sequence[ServiceRoute], *, partitions: int | None = None, replication: int | None = None
    ) -> list[TopicState]:
        """Create the topics that are missing, wait until they have leaders, and return the state of each.

        :raises BrokerUnavailableError: the broker is away.
        """

    @abc.abstractmethod
    def positions(self, route: ServiceRoute) -> Positions | None:
        """Return how far the route's topic and group are; None where the backend has neither.

        :raises BrokerUnavailableError: the broker is away.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Free what the broker itself holds; producers and subscriptions are closed by who asked for them."""
