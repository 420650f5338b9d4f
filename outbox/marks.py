"""Marks rows published once the broker has acknowledged them, and again where a row was not to be had.

Between the acknowledgement and the mark the row is ``pending`` though its record is on the topic. What is remembered
here is in that state and must not be sent again.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from outbox.repository import OutboxRepository


class PublishedMarks:
    """The acknowledged rows of one relay that are not marked yet: a consumer holds them, or the database was away.

    At most what the service's consumers have locked at one time and what a relay has in flight. A relay that ends
    forgets them: their records go out again and are found to be duplicates.
    """

    def __init__(self, repository: OutboxRepository, *, redeliver_after: timedelta) -> None:
        self._repository = repository
        self._redeliver_after = redeliver_after
        self._open: dict[int, Any] = {}
        """Row id to the moment of its claim, as the database gave it."""

    def __contains__(self, row_id: int) -> bool:
        return row_id in self._open

    def __len__(self) -> int:
        return len(self._open)

    def add(self, ids: Collection[int], *, claimed_at: Any) -> None:
        """Mark rows that were acknowledged; those that somebody has locked are marked by ``try_again``.

        :raises DatabaseError: the database is away; the rows are remembered.
        """
        if not ids:
            return
        self._open.update(dict.fromkeys(ids, claimed_at))
        self._mark(ids, claimed_at)

    def try_again(self) -> None:
        """Mark what is remembered, as far as nobody has it locked any more; forget what is not as it was claimed.

        :raises DatabaseError: the database is away; the rows are remembered.
        """
        claims: dict[Any, list[int]] = {}
        for row_id, claimed_at in self._open.items():
            claims.setdefault(claimed_at, []).append(row_id)
        for claimed_at, ids in claims.items():
            self._mark(ids, claimed_at)

    def _mark(self, ids: Collection[int], claimed_at: Any) -> None:
        marked = self._repository.mark_published(ids, claimed_at=claimed_at, redeliver_after=self._redeliver_after)
        for row_id in set(ids).difference(marked.held):
            self._open.pop(row_id, None)
