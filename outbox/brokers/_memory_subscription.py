"""A member of a group of the memory broker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from outbox.brokers.base import IncomingRecord, assignment_numbers
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import LostSubscriptionError

if TYPE_CHECKING:
    from outbox.brokers.memory import MemoryBroker


@dataclass(slots=True)
class MemoryGroup:
    """A group's offsets on one topic, and which member reads which partition."""

    committed: dict[int, int] = field(default_factory=dict)
    members: list[MemorySubscription] = field(default_factory=list)
    owners: dict[int, MemorySubscription] = field(default_factory=dict)


class MemorySubscription:
    """A ``Subscription``. A partition moves to another member when its records in hand are committed, or on leaving."""

    def __init__(self, broker: MemoryBroker, route: ServiceRoute) -> None:
        self._broker, self._route = broker, route
        self._next: dict[int, int] = {}
        self._assignments: dict[int, int] = {}
        self._uncommitted: dict[int, set[int]] = {}
        """Offsets by partition that the caller has and is to commit."""
        self._closed = False
        self._group.members.append(self)

    @property
    def assignments(self) -> Mapping[int, int]:
        with self._broker.changed:
            return {} if self._closed else {partition: self._assignments[partition] for partition in self._mine()}

    def receive(self, *, max_records: int, timeout: timedelta) -> list[IncomingRecord]:
        with self._broker.changed:
            self._broker.changed.wait_for(self._has_news, timeout.total_seconds())
            self._check_open()
            self._broker.check_here()
            taken: list[IncomingRecord] = []
            for partition in self._mine():
                log = self._broker.topic_of(self._route.topic).partitions[partition]
                start = self._next[partition]
                found = log[start : start + max_records - len(taken)]
                self._next[partition] = start + len(found)
                self._uncommitted[partition].update(record.offset for record in found)
                taken += found
            return taken

    def commit(self, records: Sequence[IncomingRecord]) -> None:
        with self._broker.changed:
            self._check_open()
            self._broker.check_here()
            group = self._group
            for record in records:
                is_mine = group.owners.get(record.partition) is self
                if is_mine and record.offset < self._next[record.partition]:
                    before = group.committed.get(record.partition, 0)
                    committed = group.committed[record.partition] = max(before, record.offset + 1)
                    left = {offset for offset in self._uncommitted[record.partition] if offset >= committed}
                    self._uncommitted[record.partition] = left
            self._broker.changed.notify_all()

    def hand_back(self, records: Sequence[IncomingRecord]) -> None:
        with self._broker.changed:
            for record in records:
                left = self._uncommitted.get(record.partition, set())
                self._uncommitted[record.partition] = {offset for offset in left if offset > record.offset}
            self._broker.changed.notify_all()

    def close(self) -> None:
        with self._broker.changed:
            if not self._closed:
                self._closed = True
                group = self._group
                group.members.remove(self)
                group.owners = {part: owner for part, owner in group.owners.items() if owner is not self}
                self._broker.changed.notify_all()

    @property
    def _group(self) -> MemoryGroup:
        return self._broker.topic_of(self._route.topic).groups.setdefault(self._route.group, MemoryGroup())

    def _check_open(self) -> None:
        if self._closed:
            raise LostSubscriptionError(f"the subscription of {self._route.group!r} has ended; subscribe again")

    def _has_news(self) -> bool:
        if self._closed or self._broker.is_away:
            return True
        logs = self._broker.topic_of(self._route.topic).partitions
        return any(self._next[partition] < len(logs[partition]) for partition in self._mine())

    def _mine(self) -> Iterable[int]:
        """Return the partitions that this member reads on, after taking over and handing over what is due."""
        group = self._group
        for partition in range(len(self._broker.topic_of(self._route.topic).partitions)):
            due = group.members[partition % len(group.members)]
            owner = group.owners.get(partition)
            if owner is due or (owner is not None and owner._has_in_hand(partition)):  # noqa: SLF001 - same class
                continue
            group.owners[partition] = due
            due._begin(partition, group.committed.get(partition, 0))  # noqa: SLF001
            self._broker.changed.notify_all()
        return [
            partition
            for partition, owner in group.owners.items()
            if owner is self and group.members[partition % len(group.members)] is self
        ]

    def _begin(self, partition: int, offset: int) -> None:
        self._next[partition] = offset
        self._assignments[partition] = next(assignment_numbers)
        self._uncommitted[partition] = set()

    def _has_in_hand(self, partition: int) -> bool:
        return bool(self._uncommitted[partition])
