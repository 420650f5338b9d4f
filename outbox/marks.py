"""Marks rows published once the broker has acknowledged them, and again where a row was not to be had.

Between the acknowledgement and the mark the row is ``pending`` though its record is on the topic. What is remembered
here is in that state and must not be sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

from django.db import connections

from outbox.repository import OutboxRepository


class Hand(Protocol):
    """Who does the marking."""

    def begin(self, work: Callable[[], None]) -> None:
        """Do ``work``, or have it done after what was begun before; raises what that raised."""

    def finish(self) -> None:
        """Wait until all is done that was begun; raises what it raised."""

    def close(self) -> None:
        """Give up what it holds."""


class OwnHand:
    """The caller's thread does it, at once."""

    def begin(self, work: Callable[[], None]) -> None:
        work()

    def finish(self) -> None:
        return

    def close(self) -> None:
        return


class SecondHand:
    """A thread beside the caller's does it, on a connection of its own: the caller sends meanwhile.

    One piece at a time, and the caller is never further ahead than by one.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._begun: Future[None] | None = None

    def begin(self, work: Callable[[], None]) -> None:
        self.finish()
        self._begun = self._pool.submit(_do, work)

    def finish(self) -> None:
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()

    def close(self) -> None:
        self._pool.submit(connections.close_all)
        self._pool.shutdown()


def _do(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:
        connections.close_all()  # this thread's; should the database be away, the next piece connects anew
        raise


class PublishedMarks:
    """The acknowledged rows of one relay that are not marked yet: on their way, or a consumer holds them.

    At most what the service's consumers have locked at one time and what a relay has in flight. A relay that ends
    forgets them: their records go out again and are found to be duplicates.
    """

    def __init__(self, repository: OutboxRepository, *, redeliver_after: timedelta, hand: Hand) -> None:
        self._repository = repository
        self._redeliver_after = redeliver_after
        self._hand = hand
        self._open: dict[int, Any] = {}
        """Row id to the moment of its claim, as the database gave it. Walked through only when the hand rests."""

    def __contains__(self, row_id: int) -> bool:
        return row_id in self._open

    def __len__(self) -> int:
        return len(self._open)

    def add(self, ids: Collection[int], *, claimed_at: Any) -> None:
        """Mark rows that were acknowledged; those that somebody has locked are marked by ``try_again``.

        :raises DatabaseError: the database is away, perhaps since an earlier call; the rows are remembered.
        """
        if not ids:
            return
        self._open.update(dict.fromkeys(ids, claimed_at))
        self._hand.begin(partial(self._mark, ids, claimed_at))

    def finish(self) -> None:
        """Wait until all marks are made that were begun.

        :raises DatabaseError: the database is away; the rows are remembered.
        """
        self._hand.finish()

    def try_again(self) -> None:
        """Mark what is remembered, as far as nobody has it locked any more; forget what is not as it was claimed.

        :raises DatabaseError: the database is away; the rows are remembered.
        """
        self._hand.finish()
        claims: dict[Any, list[int]] = {}
        for row_id, claimed_at in self._open.items():
            claims.setdefault(claimed_at, []).append(row_id)
        for claimed_at, ids in claims.items():
            self._hand.begin(partial(self._mark, ids, claimed_at))
        self._hand.finish()

    def close(self) -> None:
        """Forget what is remembered."""
        self._hand.close()

    def _mark(self, ids: Collection[int], claimed_at: Any) -> None:
        marked = self._repository.mark_published(ids, claimed_at=claimed_at, redeliver_after=self._redeliver_after)
        for row_id in set(ids).difference(marked.held):
            self._open.pop(row_id, None)
