"""Which records of which partitions were read ahead, handed to the caller, done and committed. Pure bookkeeping.

The rules, each from the promise that nothing is lost:

* Only what the caller said is done is ever committed, never what was read ahead.
* A record counts as long as its partition has stayed with this member since the caller got it. What the caller says
  of a partition that went away is passed over: the new owner gets those records again.
* A commit never goes back: an older offset would have records come again that are done.
* Where the client stands is committed only where every record that it read is done and committed: see ``settled``.

Not safe to share by itself: the subscription holds its lock around every call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from outbox.brokers.base import IncomingRecord, assignment_numbers

_RECORD_OVERHEAD_BYTES = 200
"""A guess at what a record costs beside its value, so that many small ones count too."""


@dataclass(slots=True)
class _Tenure:
    """A partition while it belongs to this member; offsets are those of records."""

    number: int
    first_taken: int = -1
    last_taken: int = -1
    done: int = -1
    committed: int = -1
    is_leaving: bool = False
    uncommitted: set[int] = field(default_factory=set)
    """What the caller has and is to commit."""

    @property
    def owed(self) -> bool:
        """The caller has said that records are done, and they are not committed."""
        return self.done > self.committed


class Ledger:
    """The books of one member of one group on one topic."""

    def __init__(self, *, max_records: int, max_bytes: int) -> None:
        self._max_records, self._max_bytes = max_records, max_bytes
        self._tenures: dict[int, _Tenure] = {}
        self._ahead: deque[IncomingRecord] = deque()
        self._ahead_bytes = 0

    # --- what belongs to this member -----------------------------------------------------------------------------

    @property
    def partitions(self) -> frozenset[int]:
        return frozenset(self._tenures)

    @property
    def assignments(self) -> dict[int, int]:
        """The number of the assignment by partition, without those that are leaving."""
        return {partition: tenure.number for partition, tenure in self._tenures.items() if not tenure.is_leaving}

    def begin(self, partitions: Iterable[int]) -> None:
        """Note that ``partitions`` belong to this member from now on."""
        for partition in partitions:
            self._tenures[partition] = _Tenure(next(assignment_numbers))

    def begin_leaving(self, partitions: Iterable[int]) -> None:
        """Drop what was read ahead of ``partitions``; commits of what the caller has in hand still count."""
        leaving = set(partitions)
        for partition in leaving & self._tenures.keys():
            self._tenures[partition].is_leaving = True
        self._forget_ahead(leaving)

    def in_hand(self, partitions: Iterable[int]) -> list[int]:
        """Return those of ``partitions`` of which the caller has records that it is to commit."""
        return sorted(
            partition
            for partition in partitions
            if (tenure := self._tenures.get(partition)) is not None and tenure.uncommitted
        )

    def end(self, partitions: Iterable[int]) -> None:
        """Note that ``partitions`` belong to somebody else now."""
        gone = set(partitions)
        for partition in gone:
            self._tenures.pop(partition, None)
        self._forget_ahead(gone)

    # --- records -------------------------------------------------------------------------------------------------

    @property
    def ahead(self) -> int:
        """How many records were read ahead."""
        return len(self._ahead)

    @property
    def room(self) -> int:
        """How many more records may be read ahead; none until a good part is free, so that reading comes in gulps."""
        free = self._max_records - len(self._ahead)
        return 0 if self._ahead_bytes >= self._max_bytes or free < self._max_records // 4 else max(0, free)

    @property
    def room_bytes(self) -> int:
        """How many more bytes may be read ahead; the last record may go beyond."""
        return max(0, self._max_bytes - self._ahead_bytes)

    def add(self, partition: int, records: Sequence[IncomingRecord]) -> None:
        """Take in records of one partition, in order; those of a partition that is not ours any more are dropped."""
        tenure = self._tenures.get(partition)
        if tenure is None or tenure.is_leaving:
            return
        self._ahead.extend(records)
        self._ahead_bytes += sum(map(_size, records))

    def take(self, limit: int) -> list[IncomingRecord]:
        """Hand up to ``limit`` records to the caller."""
        taken = [self._ahead.popleft() for _ in range(min(limit, len(self._ahead)))]
        for record in taken:
            self._ahead_bytes -= _size(record)
            tenure = self._tenures[record.partition]
            if record.offset <= tenure.last_taken:  # the topic was made anew, or its end was cut off
                tenure = self._tenures[record.partition] = _Tenure(tenure.number, is_leaving=tenure.is_leaving)
            if tenure.first_taken < 0:
                tenure.first_taken = record.offset
            tenure.last_taken = record.offset
            tenure.uncommitted.add(record.offset)
        return taken

    def hand_back(self, records: Iterable[IncomingRecord]) -> None:
        """Note that the caller will not finish ``records`` and those before them: no partition need wait for them."""
        last: dict[int, int] = {}
        for record in records:
            last[record.partition] = max(record.offset, last.get(record.partition, -1))
        for partition, offset in last.items():
            tenure = self._tenures.get(partition)
            if tenure is not None:
                tenure.uncommitted = {each for each in tenure.uncommitted if each > offset}

    # --- offsets -------------------------------------------------------------------------------------------------

    def mark_done(self, records: Iterable[IncomingRecord]) -> None:
        """Note that the caller is done with ``records`` and so with all before them in their partitions."""
        for record in records:
            tenure = self._tenures.get(record.partition)
            if tenure is not None and tenure.first_taken <= record.offset <= tenure.last_taken:
                tenure.done = max(tenure.done, record.offset)

    @property
    def owed(self) -> dict[int, int]:
        """The offset to commit by partition: that of the next record to read."""
        return {partition: tenure.done + 1 for partition, tenure in self._tenures.items() if tenure.owed}

    @property
    def settled(self) -> dict[int, int]:
        """The number of the assignment of each partition of which every record that was read is done and committed."""
        unread = {record.partition for record in self._ahead}
        return {
            partition: number
            for partition, number in self.assignments.items()
            if partition not in unread and self._tenures[partition].last_taken <= self._tenures[partition].committed
        }

    def passed(self, positions: Mapping[int, int], *, since: Mapping[int, int]) -> dict[int, int]:
        """Return those of ``positions``, offsets to be read next, that are to be committed.

        ``since`` are the ``settled`` ones of the moment before they were asked for. Nothing may have been added
        meanwhile: a position that lies behind a record which nobody has seen must not be committed.
        """
        settled = self.settled
        return {
            partition: position
            for partition, position in positions.items()
            if settled.get(partition) == since[partition] and position > self._tenures[partition].committed + 1
        }

    def mark_committed(self, offsets: Mapping[int, int]) -> None:
        """Note that the broker has taken ``offsets``, as ``owed`` or ``passed`` gave them."""
        for partition, offset in offsets.items():
            tenure = self._tenures.get(partition)
            if tenure is not None:
                tenure.committed = max(tenure.committed, offset - 1)
                tenure.uncommitted = {each for each in tenure.uncommitted if each > tenure.committed}

    def _forget_ahead(self, partitions: set[int]) -> None:
        self._ahead = deque(record for record in self._ahead if record.partition not in partitions)
        self._ahead_bytes = sum(map(_size, self._ahead))


def _size(record: IncomingRecord) -> int:
    return len(record.value or b"") + len(record.key or b"") + record.header_bytes + _RECORD_OVERHEAD_BYTES
