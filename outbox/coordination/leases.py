"""Who works on which shard: lease rows with an expiry by the database's clock, and a presence row for each worker.

Workers of one service and role settle to equal shares without talking to each other: each knows how many are alive and
where it stands among them, gives back what is above its share and takes what is free. A crashed worker's shards are
free when its leases run out.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from outbox.brokers.base import assignment_numbers
from outbox.coordination.progress import Progress
from outbox.fields import SHARD_COUNT
from outbox.storage.lease_rows import LeaseRows
from outbox.storage.pause_flags import Switches, switches_of
from outbox.storage.worker_rows import WorkerRows

RELAY: Final = "relay"
CONSUMER: Final = "consumer"


def new_worker_id() -> str:
    """Return a name that no other worker has, readable by a person: host, process id, and a random part."""
    host = socket.gethostname().split(".")[0][:32]
    return f"{host}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def fair_share(worker_id: str, alive: list[str], shards: int = SHARD_COUNT) -> int:
    """Return how many shards ``worker_id`` should hold: equal shares, the remainder to the first in order."""
    order = sorted({*alive, worker_id})
    base, remainder = divmod(shards, len(order))
    return base + (1 if order.index(worker_id) < remainder else 0)


class Presence:
    """One worker's row in ``outbox_workers``, and the service's switches, which are read on the same beat."""

    def __init__(self, *, service: str, role: str, worker_id: str, using: str, ttl: timedelta) -> None:
        self.service, self.role, self.worker_id, self.using, self.ttl = service, role, worker_id, using, ttl
        self.partitions = ""
        """What the row says that this worker holds, from the next beat on."""
        self.progress = Progress()
        self._rows = WorkerRows(service, role, using)

    def beat(self) -> Switches:
        """Say that the worker is alive and when its loop last moved; return the switches of its service."""
        self._rows.beat(self.worker_id, moved_ago=self.progress.age, partitions=self.partitions)
        return switches_of(self.service, self.using)

    def alive(self) -> list[str]:
        """Return the ids of the workers of this service and role that were seen within a lease's time, and moved in it.

        One whose loop hangs has no share: nobody would do its work.
        """
        return self._rows.moving(within=self.ttl)

    def dead_holders(self) -> list[tuple[str, str]]:
        """Return (id, partitions) of other workers not seen for half of a lease's time that name partitions."""
        return self._rows.dead_holders(unseen_for=self.ttl / 2, but=self.worker_id)

    def partitions_of_dead(self, worker_id: str) -> str:
        """Return the partitions that such a worker names; empty where it is gone, or was seen since."""
        return self._rows.partitions_of_dead(worker_id, unseen_for=self.ttl / 2)

    def replace_partitions(self, worker_id: str, *, old: str, new: str) -> bool:
        """Have such a worker's row name ``new``, unless it does not name ``old`` any more."""
        return self._rows.replace_partitions(worker_id, unseen_for=self.ttl / 2, old=old, new=new)

    def leave(self) -> None:
        """Take the row away."""
        self._rows.delete(self.worker_id)


class ShardLeases:
    """The shards that one worker holds. ``clock`` gives monotonic seconds; expiry itself is the database's matter."""

    def __init__(
        self,
        presence: Presence,
        *,
        heartbeat: timedelta,
        clock: Callable[[], float],
    ) -> None:
        self.presence = presence
        self.held: frozenset[int] = frozenset()
        self.assignments: dict[int, int] = {}
        """The shards of ``held``, each with the number of its assignment: a lease taken anew has a new one."""
        self._known: frozenset[int] | None = None
        """What the database says that it holds, unless a refresh or the database itself failed since."""
        self._heartbeat_s = heartbeat.total_seconds()
        self._clock = clock
        self._refreshed_at: float | None = None
        self._rows = LeaseRows(presence.service, presence.role, presence.using)

    @property
    def due(self) -> bool:
        """Say whether a heartbeat's interval has passed since the last refresh."""
        return self._refreshed_at is None or self._clock() - self._refreshed_at >= self._heartbeat_s

    def refresh(self) -> frozenset[int]:
        """Renew what is held, give back or take shards towards the fair share, and return what is held now.

        For the worker's loop, between batches: of a shard that it gives back nothing may be in flight. Who shares them
        is read from the workers' rows, which their heartbeats renew.
        """
        asked_at = self._clock()
        self.presence.progress.moved()
        own_id, ttl = self.presence.worker_id, self.presence.ttl
        renewed = self._rows.renew(own_id, ttl=ttl)
        # Others can only take away: as many as before are the same ones. Unknown until this has come to its end.
        known, self._known = self._known, None
        held = known if known is not None and renewed == len(known) else self._held()
        # What was lost since may be taken again below, from somebody else's hands.
        self.assignments = {shard: number for shard, number in self.assignments.items() if shard in held}
        share = fair_share(own_id, self.presence.alive())
        if len(held) > share:
            self._rows.give_back(own_id, sorted(held)[share:])
            held = self._held()
        elif len(held) < share:
            self._rows.take(own_id, share - len(held), ttl=ttl)
            held = self._held()
        self.held = self._known = held
        self.assignments = {shard: self.assignments.get(shard) or next(assignment_numbers) for shard in sorted(held)}
        self._refreshed_at = asked_at
        return held

    def renew(self) -> None:
        """Renew what is held, unless the worker's loop has not moved for half of a lease's time.

        For the heartbeat's thread. A loop that waits for its broker keeps its shards; one that hangs must not.
        """
        if self.presence.progress.age <= self.presence.ttl / 2:
            self._rows.renew(self.presence.worker_id, ttl=self.presence.ttl)

    def release(self) -> None:
        """Give everything back, so that others need not wait for the expiry."""
        self._rows.give_back(self.presence.worker_id)
        self.presence.leave()
        self.held, self.assignments = frozenset(), {}
        self._known = self._refreshed_at = None

    def forget(self) -> None:
        """Hold nothing until the next refresh: while the database was away, the leases may have run out."""
        self.held, self.assignments = frozenset(), {}
        self._known = self._refreshed_at = None

    def _held(self) -> frozenset[int]:
        return self._rows.held(self.presence.worker_id)
