"""Deleting what is done with: consumed rows and resolved rejected records, a batch a transaction, oldest first.

Each batch commits by itself, so stopping at any moment loses nothing and the next run goes on. A batch that loses its
locks to a consumer, or its database, is done again. Between batches it rests, so that those who write meanwhile have
the disk and the processor for a part of the time (measured: docs/reliability.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from outbox.coordination.connection_backoff import ConnectionBackoff
from outbox.coordination.shutdown import StopFlag
from outbox.coordination.worker_loop import WorkerLoop
from outbox.storage.rejections import RejectionStore
from outbox.storage.repository import OutboxRepository
from outbox.storage.rows import Pruned
from outbox.storage.sessions import own_transaction
from outbox.storage.status_rows import StatusRows

_LONGEST_REST: Final = timedelta(seconds=1)
_EXACT: Final = 2**62
"""A count that is asked for by a person, once, may take its time."""


@dataclass(frozen=True, slots=True)
class PruningOrder:
    """What to delete."""

    consumed_older_than: timedelta
    rejected_older_than: timedelta | None = None
    """Of rejected records, only those that a person resolved are ever deleted; None: not even those."""
    batch_size: int = 500
    busy_share: float = 0.5
    """Of the time, from above 0 to 1; the rest of it is left to others."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What was deleted of one service, or would be."""

    service: str
    what: str
    count: int
    older_than: timedelta


def prune(
    repositories: Sequence[OutboxRepository], order: PruningOrder, stop: StopFlag, tell: Callable[[str, int], object]
) -> Iterator[PruneResult]:
    """Do ``order`` service by service until ``stop`` is set; ``tell`` hears (service, deleted so far) now and then."""
    for repository in repositories:
        service = repository.route.service
        pruning = Pruning(repository, order.batch_size, stop, partial(tell, service), busy_share=order.busy_share)
        if not stop.is_set:
            count = (pruning.count_consumed if order.dry_run else pruning.consumed)(
                older_than=order.consumed_older_than
            )
            yield PruneResult(service, "consumed events", count, order.consumed_older_than)
        if not stop.is_set and order.rejected_older_than is not None:
            count = (pruning.count_rejected if order.dry_run else pruning.rejected)(
                older_than=order.rejected_older_than
            )
            yield PruneResult(service, "resolved records", count, order.rejected_older_than)


@dataclass(frozen=True, slots=True)
class Pruning:
    """Prunes one service; ``tell`` hears after each batch how many were deleted so far."""

    repository: OutboxRepository
    batch_size: int
    stop: StopFlag
    tell: Callable[[int], object]
    busy_share: float = 1.0
    clock: Callable[[], float] = time.monotonic
    """Monotonic seconds."""

    def consumed(self, *, older_than: timedelta) -> int:
        """Delete rows consumed longer ago than ``older_than``; return how many.

        :raises DatabaseError: the database refuses a statement.
        """
        before = self._ago(older_than)
        return self._in_batches(
            lambda after_id: self.repository.prune(consumed_before=before, after_id=after_id, limit=self.batch_size)
        )

    def count_consumed(self, *, older_than: timedelta) -> int:
        """Count what ``consumed`` would delete."""
        rows = StatusRows(self.repository.route)
        return rows.count_consumed(before=self._ago(older_than), cap=_EXACT).value

    def rejected(self, *, older_than: timedelta) -> int:
        """Delete rejected records that a person resolved longer ago than ``older_than``; return how many.

        :raises DatabaseError: the database refuses a statement.
        """
        before = self._ago(older_than)
        return self._in_batches(
            lambda after_id: self._rejections.prune(resolved_before=before, after_id=after_id, limit=self.batch_size)
        )

    def count_rejected(self, *, older_than: timedelta) -> int:
        """Count what ``rejected`` would delete."""
        return self._rejections.count_resolved(before=self._ago(older_than))

    def _in_batches(self, delete: Callable[[int], Pruned]) -> int:
        """Have ``delete`` delete the batch behind an id, each in a transaction of its own, until there is no more."""
        deleted = 0
        after_id = 0
        busy_s = 0.0

        def step() -> bool:
            nonlocal deleted, after_id, busy_s
            began = self.clock()
            with own_transaction(self.repository.route.database):
                pruned = delete(after_id)
            after_id = pruned.last_id or after_id
            deleted += pruned.deleted
            self.tell(deleted)
            busy_s = self.clock() - began
            return pruned.last_id is not None

        WorkerLoop(
            step=step,
            using=self.repository.route.database,
            backoff=ConnectionBackoff(self.repository.route.service, "pruning"),
            pause=lambda worked: self._rest_after(busy_s) if worked else timedelta(0),
            is_drained=lambda: True,
        ).run(self.stop)
        return deleted

    def _rest_after(self, busy_s: float) -> timedelta:
        return min(timedelta(seconds=busy_s * (1 / self.busy_share - 1)), _LONGEST_REST)

    @property
    def _rejections(self) -> RejectionStore:
        route = self.repository.route
        return RejectionStore(route.service, route.database)

    def _ago(self, length: timedelta) -> datetime:
        return self.repository.now() - length
