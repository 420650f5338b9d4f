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
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from django.db.models import Q, QuerySet

from outbox.brokers.base import assignment_numbers
from outbox.coordination.progress import Progress
from outbox.fields import SHARD_COUNT, UtcNow, from_now
from outbox.models import ServiceSwitch, ShardLease, Worker

RELAY: Final = "relay"
CONSUMER: Final = "consumer"

_FORGET_WORKERS_AFTER: Final = timedelta(hours=1)
_FORGET_HOLDERS_AFTER: Final = timedelta(days=7)
"""Of dead workers that still name partitions: who takes those over is to know of it."""


def new_worker_id() -> str:
    """Return a name that no other worker has, readable by a person: host, process id, and a random part."""
    host = socket.gethostname().split(".")[0][:32]
    return f"{host}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def fair_share(worker_id: str, alive: list[str], shards: int = SHARD_COUNT) -> int:
    """Return how many shards ``worker_id`` should hold: equal shares, the remainder to the first in order."""
    order = sorted({*alive, worker_id})
    base, remainder = divmod(shards, len(order))
    return base + (1 if order.index(worker_id) < remainder else 0)


@dataclass(frozen=True, slots=True)
class Switches:
    """A person's word on a service."""

    relay_paused: bool = False
    consumer_paused: bool = False


class Presence:
    """One worker's row in ``outbox_workers``, and the service's switches, which are read on the same beat."""

    def __init__(self, *, service: str, role: str, worker_id: str, using: str, ttl: timedelta) -> None:
        self.service, self.role, self.worker_id, self.using, self.ttl = service, role, worker_id, using, ttl
        self.partitions = ""
        """What the row says that this worker holds, from the next beat on."""
        self.progress = Progress()

    def beat(self) -> Switches:
        """Say that the worker is alive and when its loop last moved; return the switches of its service."""
        moved_at = from_now(-self.progress.age)
        seen = (
            Worker.objects.using(self.using)
            .filter(pk=self.worker_id)
            .update(seen_at=UtcNow(), moved_at=moved_at, partitions=self.partitions)
        )
        if not seen:
            row = Worker(
                worker_id=self.worker_id,
                service=self.service,
                role=self.role,
                host=socket.gethostname()[:255],
                pid=os.getpid(),
                moved_at=moved_at,
                partitions=self.partitions,
            )
            # A thread that was given up for another one may find it missing, too.
            Worker.objects.using(self.using).bulk_create([row], ignore_conflicts=True)
            self._forget_dead()
        switch = (
            ServiceSwitch.objects.using(self.using)
            .filter(pk=self.service)
            .values_list("relay_paused", "consumer_paused")
            .first()
        )
        return Switches(*switch) if switch else Switches()

    def alive(self) -> list[str]:
        """Return the ids of the workers of this service and role that were seen within a lease's time, and moved in it.

        One whose loop hangs has no share: nobody would do its work.
        """
        since = from_now(-self.ttl)
        moves = Q(moved_at=None) | Q(moved_at__gt=since)  # older workers do not say
        return list(self._workers().filter(moves, seen_at__gt=since).values_list("worker_id", flat=True))

    def dead(self) -> QuerySet[Worker]:
        """Return the rows of other workers of this service and role not seen for half of a lease's time."""
        return self._workers().filter(seen_at__lt=from_now(-self.ttl / 2)).exclude(pk=self.worker_id)

    def leave(self) -> None:
        """Take the row away."""
        Worker.objects.using(self.using).filter(pk=self.worker_id).delete()

    def _forget_dead(self) -> None:
        held_nothing = Q(seen_at__lt=from_now(-_FORGET_WORKERS_AFTER), partitions="")
        self._workers().filter(held_nothing | Q(seen_at__lt=from_now(-_FORGET_HOLDERS_AFTER))).delete()

    def _workers(self) -> QuerySet[Worker]:
        return Worker.objects.using(self.using).filter(service=self.service, role=self.role)


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
        mine = self._leases().filter(owner=self.presence.worker_id)
        renewed = mine.update(expires_at=from_now(self.presence.ttl))
        # Others can only take away: as many as before are the same ones. Unknown until this has come to its end.
        known, self._known = self._known, None
        held = known if known is not None and renewed == len(known) else self._held()
        # What was lost since may be taken again below, from somebody else's hands.
        self.assignments = {shard: number for shard, number in self.assignments.items() if shard in held}
        share = fair_share(self.presence.worker_id, self.presence.alive())
        if len(held) > share:
            surplus = sorted(held)[share:]
            mine.filter(shard__in=surplus).update(owner="", expires_at=UtcNow())
            held = self._held()
        elif len(held) < share:
            held = self._take(share - len(held))
        self.held = self._known = held
        self.assignments = {shard: self.assignments.get(shard) or next(assignment_numbers) for shard in sorted(held)}
        self._refreshed_at = asked_at
        return held

    def renew(self) -> None:
        """Renew what is held, unless the worker's loop has not moved for half of a lease's time.

        For the heartbeat's thread. A loop that waits for its broker keeps its shards; one that hangs must not.
        """
        if self.presence.progress.age <= self.presence.ttl / 2:
            mine = self._leases().filter(owner=self.presence.worker_id)
            mine.update(expires_at=from_now(self.presence.ttl))

    def release(self) -> None:
        """Give everything back, so that others need not wait for the expiry."""
        self._leases().filter(owner=self.presence.worker_id).update(owner="", expires_at=UtcNow())
        self.presence.leave()
        self.held, self.assignments = frozenset(), {}
        self._known = self._refreshed_at = None

    def forget(self) -> None:
        """Hold nothing until the next refresh: while the database was away, the leases may have run out."""
        self.held, self.assignments = frozenset(), {}
        self._known = self._refreshed_at = None

    def _take(self, count: int) -> frozenset[int]:
        rows = self._leases().values_list("shard", flat=True)
        missing = set(range(SHARD_COUNT)) - set(rows)
        if missing:
            ShardLease.objects.using(self.presence.using).bulk_create(
                [
                    ShardLease(service=self.presence.service, role=self.presence.role, shard=shard)
                    for shard in sorted(missing)
                ],
                ignore_conflicts=True,
            )
        is_free = Q(owner="") | Q(expires_at__lte=UtcNow())
        free = list(self._leases().filter(is_free).order_by("shard").values_list("shard", flat=True)[:count])
        if free:
            # The condition again: another worker may have taken one in between.
            self._leases().filter(is_free, shard__in=free).update(
                owner=self.presence.worker_id, expires_at=from_now(self.presence.ttl)
            )
        return self._held()

    def _held(self) -> frozenset[int]:
        return frozenset(self._leases().filter(owner=self.presence.worker_id).values_list("shard", flat=True))

    def _leases(self) -> QuerySet[ShardLease]:
        return ShardLease.objects.using(self.presence.using).filter(
            service=self.presence.service, role=self.presence.role
        )
