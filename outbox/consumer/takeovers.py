"""Which partitions came from a worker that did not deregister: one of its last records may have ended it.

The row of a consumer names what it holds. Who takes a partition over from a row that nobody renews is careful with as
many of its next records as the dead worker can have had in its batch. A worker that is alive though its row is old is
suspected too, which costs a little time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from outbox.brokers.base import IncomingRecord
from outbox.coordination.leases import Presence
from outbox.coordination.partitions import decode_partitions, names_partition, without_partitions
from outbox.models import WORKER_PARTITIONS_MAX_LENGTH

_MOST_TRIES: Final = 5
"""To strike partitions from a row from which others strike theirs at the same moment."""


class Takeovers:
    """Counts how many of the next records of each partition that was taken over are suspect: ``records`` at first."""

    def __init__(self, presence: Presence, *, records: int) -> None:
        self._presence, self._records = presence, records
        self._assignments: dict[int, int] = {}
        self._suspects: dict[int, int] = {}
        """How many records are still suspect, by partition; at 0 the dead workers' rows are to stop naming it."""
        self._dead: dict[int, set[str]] = {}
        """The dead workers whose rows name a suspect partition."""

    def look(self, assignments: Mapping[int, int]) -> None:
        """Take in what the subscription says that it holds; where that is new, ask who held it before.

        :raises DatabaseError: nothing was taken in; call it again before records are handled.
        """
        if assignments == self._assignments:
            return
        kept = assignments.items() & self._assignments.items()
        gained = dict(assignments.items() - kept)
        rows = self._presence.dead_holders() if gained else []
        kept_partitions = {partition for partition, _ in kept}
        self._suspects = {each: left for each, left in self._suspects.items() if each in kept_partitions}
        self._dead = {each: dead for each, dead in self._dead.items() if each in kept_partitions}
        for worker_id, text in rows:
            ranges = decode_partitions(text)
            for partition in gained:
                if names_partition(ranges, partition):
                    self._suspects[partition] = self._records
                    self._dead.setdefault(partition, set()).add(worker_id)
        self._assignments = dict(assignments)

    @property
    def has_suspects(self) -> bool:
        """Say whether any record is suspect; hardly ever."""
        return bool(self._suspects)

    def is_suspect(self, record: IncomingRecord) -> bool:
        """Say whether ``record`` may be the one that ended a worker."""
        return bool(self._suspects) and self._suspects.get(record.partition, 0) > 0

    def passed(self, records: Sequence[IncomingRecord]) -> None:
        """Note that ``records`` were brought to an end, whichever; call it behind their commit.

        :raises DatabaseError: a dead worker's row still names a partition; the next call does the rest.
        """
        if not self._suspects:
            return
        for partition, count in Counter(record.partition for record in records).items():
            if partition in self._suspects:
                self._suspects[partition] = max(0, self._suspects[partition] - count)
        over = {partition for partition, left in self._suspects.items() if left == 0}
        if over:
            for worker_id in set().union(*(self._dead[partition] for partition in over)):
                self._strike(worker_id, {partition for partition in over if worker_id in self._dead[partition]})
            for partition in over:
                del self._suspects[partition], self._dead[partition]

    def _strike(self, worker_id: str, partitions: set[int]) -> None:
        """Have a dead worker's row stop naming ``partitions``; one that lives after all says itself what it holds."""
        for _ in range(_MOST_TRIES):
            text = self._presence.partitions_of_dead(worker_id)
            if not text:
                return
            left = without_partitions(text, partitions, max_length=WORKER_PARTITIONS_MAX_LENGTH)
            if left == text or self._presence.replace_partitions(worker_id, old=text, new=left):
                return
