"""Rows as a relay finds and marks them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final

from outbox import lifecycle
from outbox.storage.blocked_keys import BlockedKeyRows
from outbox.storage.chunks import chunks
from outbox.storage.conditions import due
from outbox.storage.dialects import from_db, id_list, moment_of, to_db
from outbox.storage.rows import NEVER_PUT_BACK, Claim, Counts, Due, Failure, Marked
from outbox.storage.sessions import own_transaction
from outbox.storage.transitions import in_bytes

UNBOUNDED: Final = 2**63
_DUE_BEFORE: Final = timedelta(seconds=1)
"""So long before its last change a redelivered row was due. Others are due later than that, or as long before as a
statement takes."""


@dataclass(frozen=True, slots=True)
class RelayRows(BlockedKeyRows):
    """What a relay, or the table broker in its place, does with the rows of a service."""

    def claim(
        self,
        *,
        shards: Collection[int] | None,
        limit: int,
        max_length: int,
        max_bytes: int = UNBOUNDED,
        after: tuple[Any, int] | None = None,
    ) -> Claim:
        """Return up to ``limit`` rows that are due in ``shards`` (None: all), the longest waiting first.

        Payloads of up to ``max_length`` bytes come along, of as many rows as have ``max_bytes`` together. Only those
        that are sure to fit come with the rows; the others' lengths come first.

        ``after`` goes on behind the last row of an earlier claim. Starting there skips the index entries of rows that
        were marked a moment ago and not yet purged, which would make a claim ten times slower; rows that were
        committed late lie before it, so a caller starts from the oldest again and again.
        """
        search, length = self._searches, self._length_of("m.payload")
        found_due, parameters = (
            search.oldest_due(shards, limit) if after is None else search.due_after(after, shards, limit)
        )
        found = self._fetch(
            f"SELECT m.id, m.{self._type}, m.message_key,"
            f" CASE WHEN {length} <= %s THEN {self._sql.bytes_of.format('m.payload')} END, m.traceparent,"
            f" {self._sql.exact.format(self._sql.dated.format('m.next_retry_at'))},"
            f" {self._sql.exact.format(self._sql.now)}, {length}, m.event_id, m.next_retry_at < m.updated_at,"
            " m.put_back_count, m.retry_count"
            f" FROM ({found_due}) due JOIN {self._table} m ON m.id = due.id",
            [min(max_length, max_bytes // limit), *parameters],
        )
        if not found:
            return Claim([])
        rows = sorted(found, key=_due_order)
        if sum(row[7] for row in rows) > max_bytes:
            fitting = chunks(
                rows, lambda row: row[7] if row[7] <= max_length else 0, max_items=limit, max_bytes=max_bytes
            )
            rows = next(fitting)
        long = self.payloads_of([row[0] for row in rows if row[3] is None and row[7] <= max_length])
        published_for = self._published_for([row[0] for row in rows if row[9]])
        return Claim(
            rows=sorted(
                (
                    Due(
                        row[0],
                        row[1],
                        row[2],
                        long.get(row[0]) if row[3] is None else in_bytes(row[3]),
                        row[4],
                        row[8],
                        published_for.get(row[0]) if row[9] else None,
                        row[10],
                        row[11],
                    )
                    for row in rows
                ),
                key=attrgetter("id"),
            ),
            claimed_at=rows[0][6],
            last=None if rows[0][5] is None or moment_of(rows[-1][5]) is None else (rows[-1][5], rows[-1][0]),
            is_cut=len(rows) < len(found),
        )

    def mark_published(
        self,
        ids: Collection[int],
        *,
        claimed_at: Any,
        redeliver_after: timedelta,
        counts: Counts = NEVER_PUT_BACK,
    ) -> Marked:
        """Mark rows that the broker acknowledged, without waiting for those that somebody else has locked.

        A consumer may hold a record before its row is marked, and its handler may take its time: whoever waited for it
        here would hold up every other key. A row that was put back after the claim is left alone, and so a relay that
        slept through the end of its lease overwrites nothing. ``counts``: those of the rows when they were claimed.
        """
        as_claimed = _as_claimed(claimed_at, counts)
        again_at = to_db(self._connection, from_db(claimed_at) + redeliver_after)
        count = self._move(
            lifecycle.MARK_PUBLISHED,
            ids,
            f"published_at = {self._sql.now}, next_retry_at = %s",
            [again_at],
            also=as_claimed,
            skip_locked=True,
        )
        held = self._find(lifecycle.MARK_PUBLISHED.sources, ids, also=as_claimed) if count < len(ids) else []
        return Marked(count, held)

    def redeliver(self, *, shards: Collection[int] | None, published_before: datetime, limit: int) -> int:
        """Send up to ``limit`` rows again that have been ``published`` since before ``published_before``.

        What somebody has locked is being handled, and so it is not stuck. A row is due a second before this changes it,
        as no other is: so the claim knows it, and tells how long it was published.
        """
        moment = to_db(self._connection, published_before)
        stuck = self._fetch(*self._searches.stuck(shards, moment, limit))
        if not stuck:
            return 0
        due_at = to_db(self._connection, self.now() - _DUE_BEFORE)
        ids = [row[0] for row in stuck]
        return self._move(lifecycle.REDELIVER, ids, "next_retry_at = %s", [due_at], skip_locked=True)

    def bury_refused(
        self,
        row_id: int,
        *,
        failure: Failure,
        parks_key: bool,
        claimed_at: Any,
        counts: Counts = NEVER_PUT_BACK,
    ) -> int:
        """Make a row dead that the broker refuses, unless it was put back after the claim or somebody has locked it.

        What waits behind it is released, unless it holds its key back.
        """
        as_claimed = _as_claimed(claimed_at, counts)
        with own_transaction(self.route.database):
            buried = self._bury(row_id, failure, parks_key, also=as_claimed, skip_locked=True)
            if buried and not parks_key:
                self.release_behind_rows([row_id])
        return buried

    def published(self, *, shards: Collection[int] | None, limit: int) -> list[tuple[int, str, str, int]]:
        """Return (id, event type, key, shard) of rows that wait for their consumer, in id order: a table as a queue."""
        waiting, parameters = self._searches.waiting(shards, limit)
        found = self._fetch(
            f"SELECT m.id, m.{self._type}, m.message_key, m.shard"
            f" FROM ({waiting}) waiting JOIN {self._table} m ON m.id = waiting.id",
            parameters,
        )
        return sorted(found)

    def _published_for(self, ids: Collection[int]) -> dict[int, timedelta]:
        """Return how long those of ``ids`` were published that ``redeliver`` moved."""
        if not ids:
            return {}
        times = ", ".join(map(self._sql.dated.format, ("next_retry_at", "published_at", "updated_at")))
        found = {}
        for row_id, *moments in self._fetch(f"SELECT id, {times} FROM {self._table} WHERE id IN ({id_list(ids)})"):
            due, published, changed = map(moment_of, moments)
            if due is not None and published is not None and changed is not None and changed - due >= _DUE_BEFORE:
                found[row_id] = due - published
        return found


def _as_claimed(claimed_at: Any, counts: Counts) -> tuple[str, Sequence[Any]]:
    """Return the condition that nobody has put a row back since its claim.

    What the outbox puts back, it counts. Other software counts a failed attempt, or makes the row due later than the
    claim was.
    """
    conditions = [due("%s")]
    for at, column in enumerate(("put_back_count", "retry_count")):
        rows_of: dict[int, list[int]] = {}
        for row_id, numbers in counts.items():
            if numbers[at]:
                rows_of.setdefault(numbers[at], []).append(row_id)
        cases = "".join(f" WHEN id IN ({id_list(ids)}) THEN {number:d}" for number, ids in rows_of.items())
        conditions.append(f"{column} = {f'CASE{cases} ELSE 0 END' if cases else '0'}")
    return " AND ".join(conditions), [claimed_at]


def _due_order(row: Sequence[Any]) -> tuple[bool, Any, int]:
    """Return what a claimed row is sorted by, as the search for what is due sorts: what has no moment comes first."""
    return row[5] is not None, row[5], row[0]
