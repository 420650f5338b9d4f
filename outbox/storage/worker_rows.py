"""The rows of workers: who runs, when its loop last moved, and which partitions it holds."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from django.db.models import Q, QuerySet

from outbox.fields import UtcNow, from_now
from outbox.models import Worker

_FORGET_WORKERS_AFTER: Final = timedelta(hours=1)
_FORGET_HOLDERS_AFTER: Final = timedelta(days=7)
"""Of dead workers that still name partitions: who takes those over is to know of it."""


def workers_seen(using: str, *, within: timedelta) -> QuerySet[Worker]:
    """Return the workers of all services that were seen within a time."""
    return Worker.objects.using(using).filter(seen_at__gt=from_now(-within))


@dataclass(frozen=True, slots=True)
class WorkerRows:
    """The workers of one service and role, in the database ``using``."""

    service: str
    role: str
    using: str

    def beat(self, worker_id: str, *, moved_ago: timedelta, partitions: str) -> None:
        """Note that a worker of this process is alive, when its loop last moved, and what it holds."""
        moved_at = from_now(-moved_ago)
        own = Worker.objects.using(self.using).filter(pk=worker_id)
        if own.update(seen_at=UtcNow(), moved_at=moved_at, partitions=partitions):
            return
        row = Worker(
            worker_id=worker_id,
            service=self.service,
            role=self.role,
            host=socket.gethostname()[:255],
            pid=os.getpid(),
            moved_at=moved_at,
            partitions=partitions,
        )
        # A heartbeat that was given up for another one may find it missing, too.
        Worker.objects.using(self.using).bulk_create([row], ignore_conflicts=True)
        self._forget_dead()

    def seen(self, *, within: timedelta) -> QuerySet[Worker]:
        """Return those that were seen within a time, by when they started."""
        return self._all.filter(seen_at__gt=from_now(-within)).order_by("started_at", "worker_id")

    def moving(self, *, within: timedelta) -> list[str]:
        """Return the ids of those that were seen within a time, and moved in it."""
        since = from_now(-within)
        moves = Q(moved_at=None) | Q(moved_at__gt=since)  # older workers do not say
        return list(self._all.filter(moves, seen_at__gt=since).values_list("worker_id", flat=True))

    def dead_holders(self, *, unseen_for: timedelta, but: str) -> list[tuple[str, str]]:
        """Return (id, partitions) of those that were not seen for a time and name partitions, ``but`` for one."""
        dead = self._dead(unseen_for).exclude(pk=but).exclude(partitions="")
        return list(dead.values_list("worker_id", "partitions"))

    def partitions_of_dead(self, worker_id: str, *, unseen_for: timedelta) -> str:
        """Return the partitions that a worker names which was not seen for a time; empty: it is gone, or is seen."""
        return self._dead(unseen_for).filter(pk=worker_id).values_list("partitions", flat=True).first() or ""

    def replace_partitions(self, worker_id: str, *, unseen_for: timedelta, old: str, new: str) -> bool:
        """Have the row of such a worker name ``new``, unless it does not name ``old`` any more."""
        return bool(self._dead(unseen_for).filter(pk=worker_id, partitions=old).update(partitions=new))

    def delete(self, worker_id: str) -> None:
        """Take a worker's row away."""
        Worker.objects.using(self.using).filter(pk=worker_id).delete()

    def _forget_dead(self) -> None:
        held_nothing = Q(seen_at__lt=from_now(-_FORGET_WORKERS_AFTER), partitions="")
        self._all.filter(held_nothing | Q(seen_at__lt=from_now(-_FORGET_HOLDERS_AFTER))).delete()

    def _dead(self, unseen_for: timedelta) -> QuerySet[Worker]:
        return self._all.filter(seen_at__lt=from_now(-unseen_for))

    @property
    def _all(self) -> QuerySet[Worker]:
        return Worker.objects.using(self.using).filter(service=self.service, role=self.role)
