"""Marks rows published once the broker has acknowledged them, and again where a row was not to be had.

Between the acknowledgement and the mark the row is ``pending`` though its record is on the topic. What is remembered
here is in that state and must not be sent again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any, Final, Protocol

from django.db import connections

from outbox.storage.relay_rows import RelayRows
from outbox.storage.rows import NEVER_PUT_BACK, Counts
from outbox.storage.sessions import close_if_idle

_LEAVE_TIMEOUT_S: Final = 10.0
_AS_USUAL: Final[Mapping[int, timedelta]] = {}


class Hand(Protocol):
    """Who does the marking."""

    def begin(self, work: Callable[[], None]) -> None:
        """Do ``work``, or have it done; raises what an earlier piece raised."""

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


class OtherHands:
    """Threads beside the caller's do it, on connections of their own: the caller sends meanwhile.

    ``threads`` pieces at a time at the most; with one more the caller waits. A thread and its connection come into
    being when there is work for it; ``prepare`` is the first thing that it does.
    """

    def __init__(self, name: str, *, threads: int = 2, prepare: Callable[[], None] = lambda: None) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=prepare)
        self._begun: deque[Future[None]] = deque()

    def begin(self, work: Callable[[], None]) -> None:
        self._wait_for(self._threads - 1)
        self._begun.append(self._pool.submit(_do, work))

    def finish(self) -> None:
        self._wait_for(0)

    def close(self) -> None:
        all_of_them = threading.Barrier(self._threads, timeout=_LEAVE_TIMEOUT_S)
        for _ in range(self._threads):  # each by a thread of its own, as none goes on before the last one has come
            self._pool.submit(_leave, all_of_them)
        self._pool.shutdown()

    def _wait_for(self, left: int) -> None:
        """Wait until at most ``left`` pieces are under way; where one failed, until none is."""
        errors: list[Exception] = []
        while len(self._begun) > (0 if errors else left):
            try:
                self._begun.popleft().result()
            except Exception as error:  # noqa: BLE001 - raised below, when nothing is under way any more
                errors.append(error)
        if errors:
            raise errors[0]


def _do(work: Callable[[], None]) -> None:
    try:
        close_if_idle()
        work()
    except Exception:
        connections.close_all()  # this thread's; should the database be away, the next piece connects anew
        raise


def _leave(together: threading.Barrier) -> None:
    try:
        together.wait()
    except threading.BrokenBarrierError:
        pass  # one could not be started any more; this one must not wait for it for ever
    finally:
        connections.close_all()


class PublishedMarks:
    """The acknowledged rows of one relay that are not marked yet: on their way, or a consumer holds them.

    At most what the service's consumers have locked at one time and what a relay has in flight. A relay that ends
    forgets them: their records go out again and are found to be duplicates.
    """

    def __init__(self, repository: RelayRows, *, redeliver_after: timedelta, hand: Hand) -> None:
        self._repository = repository
        self._redeliver_after = redeliver_after
        self._hand = hand
        self._open: dict[int, tuple[Any, timedelta]] = {}
        """Row id to the moment of its claim, as the database gave it, and when it may be sent again after that.

        Walked through only when the hand rests."""
        self._counts: dict[int, tuple[int, int]] = {}
        """Of those that were put back before that claim: how often, and how often tried."""

    def __contains__(self, row_id: int) -> bool:
        return row_id in self._open

    def __len__(self) -> int:
        return len(self._open)

    def add(
        self,
        ids: Collection[int],
        *,
        claimed_at: Any,
        pauses: Mapping[int, timedelta] = _AS_USUAL,
        counts: Counts = NEVER_PUT_BACK,
    ) -> None:
        """Mark rows that were acknowledged; those that somebody has locked are marked by ``try_again``.

        ``pauses``: how long those rows may stay published that are sent again for longer than others. ``counts``: those
        of the rows that were put back before they were claimed.

        :raises DatabaseError: the database is away, perhaps since an earlier call; the rows are remembered.
        """
        if not ids:
            return
        added = {row_id: (claimed_at, pauses.get(row_id, self._redeliver_after)) for row_id in ids}
        self._open.update(added)
        self._counts.update({row_id: counts[row_id] for row_id in added.keys() & counts.keys()})
        self._begin(added)

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
        self._begin(self._open)
        self._hand.finish()

    def close(self) -> None:
        """Forget what is remembered."""
        self._hand.close()

    def _begin(self, rows: Mapping[int, tuple[Any, timedelta]]) -> None:
        together: dict[tuple[Any, timedelta], list[int]] = {}
        for row_id, claim in rows.items():
            together.setdefault(claim, []).append(row_id)
        for (claimed_at, pause), ids in together.items():
            counts = {row_id: self._counts[row_id] for row_id in ids if row_id in self._counts}
            self._hand.begin(partial(self._mark, ids, claimed_at, pause, counts))

    def _mark(self, ids: Collection[int], claimed_at: Any, pause: timedelta, counts: Counts) -> None:
        marked = self._repository.mark_published(ids, claimed_at=claimed_at, redeliver_after=pause, counts=counts)
        for row_id in set(ids).difference(marked.held):
            self._open.pop(row_id, None)
            self._counts.pop(row_id, None)
