"""Rows as a consumer locks and marks them, all inside of the transaction of the caller."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from outbox import lifecycle
from outbox.lifecycle import Status
from outbox.storage.blocked_keys import BlockedKeyRows
from outbox.storage.conditions import due
from outbox.storage.dialects import from_db, id_list, moment_of, to_db
from outbox.storage.rows import Blocker, Failure, Identity, Keyed, Locked, Predecessors
from outbox.storage.transitions import columns, in_bytes


@dataclass(frozen=True, slots=True)
class ConsumerRows(BlockedKeyRows):
    """What a consumer does with the rows of a service."""

    def lock(self, ids: Sequence[int], *, max_length: int) -> list[Locked]:
        """Lock rows in the order of their ids; return those that exist and that nobody else has locked, in that order.

        The payload comes along unless it is longer than ``max_length`` or its row is finished. What does not come is
        looked up by ``existing``: to wait for one row here would hold up all that is behind it.
        """
        if not ids:
            return []
        now, length = self._sql.now, self._length_of("payload")
        found = self._fetch(
            f"SELECT id, {self._type}, message_key, status, retry_count, replay_count, max_retry,"
            f" {due(now)}, traceparent,"
            f" CASE WHEN status IN (%s, %s) AND {length} <= %s THEN {self._sql.bytes_of.format('payload')} END,"
            f" CASE WHEN status IN (%s, %s) THEN {length} ELSE 0 END, interruptions, event_id"
            f" FROM {self._table}{self._sql.by_primary_key} WHERE id IN ({id_list(ids)})"
            f" ORDER BY id{self._sql.skip_locked}",
            [*lifecycle.UNFINISHED, max_length, *lifecycle.UNFINISHED],
        )
        return [
            Locked(a, b, c, d, e, f, g, bool(due), trace, in_bytes(payload), size, interruptions, event_id)
            for a, b, c, d, e, f, g, due, trace, payload, size, interruptions, event_id in found
        ]

    def existing(self, ids: Collection[int]) -> dict[int, Identity]:
        """Return what those of ``ids`` are that have a row, by a plain read that waits for nobody."""
        if not ids:
            return {}
        found = self._fetch(
            f"SELECT id, {self._type}, message_key, event_id FROM {self._table}{self._sql.by_primary_key}"
            f" WHERE id IN ({id_list(ids)})"
        )
        return {row[0]: Identity(*row[1:]) for row in found}

    def predecessors(self, locked: Sequence[Keyed]) -> Predecessors:
        """Return, by key, the oldest unfinished row before the last of ``locked`` and not one of them.

        A dead row that parks its key counts as unfinished: its successors wait until a person decides.
        """
        if not locked:
            return Predecessors()
        oldest, noted = self._oldest_unfinished(locked, foreign_too=True)
        details = self._details(oldest)
        if any(row[-1] in self.foreign_types for row in details):  # rare: rows from when the table was shared
            oldest, noted = self._oldest_unfinished(locked, foreign_too=False)
            details = self._details(oldest)
        blockers = {
            key: Blocker(
                id=row_id,
                due_at=moment_of(due_at) if status == Status.PENDING else None,
                unchanged_for=_time_since(updated_at, now),
                is_sent=status == Status.PUBLISHED,
                is_deferred=status == Status.PENDING and not tries,
            )
            for key, row_id, status, due_at, updated_at, now, tries, _event_type in details
        }
        return Predecessors(blockers, noted)

    def mark_consumed(self, ids: Sequence[int]) -> int:
        """Mark rows whose effects are in the same transaction; return how many."""
        now = self._sql.now
        return self._move(
            lifecycle.CONSUME,
            ids,
            f"consumed_at = {now}, published_at = COALESCE({self._sql.dated.format('published_at')}, {now}),"
            " interruptions = 0",
        )

    def wait(self, ids: Sequence[int], *, until: datetime) -> int:
        """Put rows back behind their unfinished predecessor; it costs them no attempt."""
        return self.wait_each({until: ids})

    def wait_each(self, moments: Mapping[datetime, Sequence[int]]) -> int:
        """Do the same with rows that are due again at different moments, in one statement."""
        cases = " ".join(f"WHEN id IN ({id_list(ids)}) THEN %s" for ids in moments.values())
        return self._move(
            lifecycle.WAIT,
            [row_id for ids in moments.values() for row_id in ids],
            f"next_retry_at = {'%s' if len(moments) == 1 else f'CASE {cases} END'}, interruptions = 0",
            [to_db(self._connection, moment) for moment in moments],
        )

    def retry(self, row: Locked, *, due_at: datetime, failure: Failure) -> int:
        """Note a failed attempt and have the row come again at ``due_at``, unless that attempt is history by now."""
        return self._move(
            lifecycle.RETRY,
            [row.id],
            "retry_count = retry_count + 1, interruptions = 0, next_retry_at = %s, last_error = %s, error_class = %s,"
            " traceback = %s",
            [to_db(self._connection, due_at), *columns(failure)],
            also=_same_attempt(row),
        )

    def interrupt(self, row: Locked, *, due_at: datetime, failure: Failure | None = None) -> int:
        """Count an interruption and have the row come again at ``due_at``, unless that attempt is history by now.

        Before a suspect event is tried, or, with a ``failure`` to note, after its connection was lost.
        """
        noted = "" if failure is None else ", last_error = %s, error_class = %s, traceback = %s"
        return self._move(
            lifecycle.INTERRUPT,
            [row.id],
            f"interruptions = interruptions + 1, next_retry_at = %s{noted}",
            [to_db(self._connection, due_at), *(() if failure is None else columns(failure))],
            also=_same_attempt(row),
        )

    def forget_interruptions(self, row: Locked) -> bool:
        """Make a row due, its count at 0, whose suspect try came to no end by no doing of its own.

        Return whether that is settled: done, or the row was moved since; not while somebody else has it locked.
        """
        also = _same_attempt(row)
        assignments = f"interruptions = 0, next_retry_at = {self._sql.now}"
        moved = self._move(lifecycle.WAIT, [row.id], assignments, also=also, skip_locked=True)
        return bool(moved) or not self._find(lifecycle.WAIT.sources, [row.id], also=also)

    def redeliver_lost(self, ids: Collection[int]) -> int:
        """Send ``published`` rows again whose records are lost, as somebody knows who received what lay behind them."""
        return self._move(lifecycle.REDELIVER, ids, f"next_retry_at = {self._sql.now}", skip_locked=True)

    def bury(self, row_id: int, *, failure: Failure, parks_key: bool) -> int:
        """Make a row dead, with the reason; ``parks_key`` holds back the later events of its key."""
        return self._bury(row_id, failure, parks_key)

    def bury_failed(self, row: Locked, *, failure: Failure, parks_key: bool, failed_attempts: int = 1) -> int:
        """Note the last attempt of a row and make it dead, unless that attempt is history by now."""
        return self._bury(row.id, failure, parks_key, failed_attempts=failed_attempts, also=_same_attempt(row))

    def _oldest_unfinished(self, locked: Sequence[Keyed], *, foreign_too: bool) -> tuple[list[int], list[int]]:
        """Return, one for each key that has any, the smallest unfinished id before the last of ``locked``; and notes.

        The second list are the ids of the notes of blocked keys.
        """
        keys = {row.message_key for row in locked}
        oldest: dict[str, int] = {}
        noted = []
        search = self._searches.oldest_unfinished(self.route.service, locked, foreign_too=foreign_too)
        for key, row_id in self._fetch(*search):
            if row_id < 0:
                noted.append(-row_id)
            elif key in keys:  # and not one that the column's collation takes for one of them
                oldest[key] = min(row_id, oldest.get(key, row_id))
        return sorted(oldest.values()), noted

    def _details(self, ids: Sequence[int]) -> list[Any]:
        if not ids:
            return []
        return self._fetch(
            f"SELECT message_key, id, status, {self._sql.dated.format('next_retry_at')},"
            f" {self._sql.dated.format('updated_at')}, {self._sql.now}, retry_count + interruptions, {self._type}"
            f" FROM {self._table}{self._sql.by_primary_key} WHERE id IN ({id_list(ids)})"
        )


def _same_attempt(row: Locked) -> tuple[str, Sequence[Any]]:
    """Return the condition that a row is at the attempt at which it was locked.

    Attempts alone do not say so: they begin at 0 again when a person replays the row, and a worker that took it over
    may have counted an interruption.
    """
    return (
        "retry_count = %s AND replay_count = %s AND interruptions = %s",
        [row.retry_count, row.replay_count, row.interruptions],
    )


def _time_since(value: Any, now: Any) -> timedelta:
    """Return the time from a column's moment until ``now``; without one it is for ever."""
    moment = moment_of(value)
    return timedelta.max if moment is None else from_db(now) - moment
