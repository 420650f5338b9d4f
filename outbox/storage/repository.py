"""The only writer of outbox rows: every change of ``status`` is one of the transitions of ``outbox.lifecycle``.

An update names the statuses that it is legal from and looks at the number of rows it changed, so a worker that acts on
old knowledge changes nothing. SQL is written by hand where the ORM costs more than half of the time (measured: docs/
performance.md). All times that are compared come from the database's clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final

from django.db import connections

from outbox import lifecycle
from outbox.declarations.routes import ServiceRoute
from outbox.lifecycle import Status, Transition
from outbox.storage.chunks import chunks
from outbox.storage.dialects import Dialect, dialect_of, from_db, id_list, moment_of, placeholders, storable, to_db
from outbox.storage.queries import Searches
from outbox.storage.rows import Blocker, Claim, Due, Failure, Identity, Locked, Marked, NewRow, Pruned
from outbox.storage.sessions import own_transaction

LAST_ERROR_MAX_LENGTH: Final = 2000
TRACEBACK_MAX_LENGTH: Final = 100_000
_UNBOUNDED: Final = 2**63
_AS_CLAIMED: Final = "(next_retry_at IS NULL OR next_retry_at <= %s)"
"""Whoever put a row back after a claim made it due later than that claim."""
_DUE_BEFORE: Final = timedelta(seconds=1)
"""So long before its last change a redelivered row was due. Others are due later than that, or as long before as a
statement takes."""


@dataclass(frozen=True, slots=True)
class OutboxRepository:
    """The outbox table of one service.

    ``foreign_types`` are event types that other services own: their rows may lie in this table from the time when it
    was shared; they are neither sent nor waited for.
    """

    route: ServiceRoute
    foreign_types: tuple[str, ...] = field(default=())

    # --- publishing ----------------------------------------------------------------------------------------------

    def insert(self, rows: Iterable[NewRow]) -> int:
        """Insert ``rows`` in the caller's transaction, in their order; return how many."""
        inserted = 0
        for chunk in chunks(rows, lambda row: len(row.payload)):
            values: list[Any] = []
            for row in chunk:
                values += [
                    row.event_type,
                    self.route.service,
                    self.route.topic,
                    row.message_key,
                    row.payload.decode(),
                    row.max_retry,
                    row.traceparent,
                    row.event_id,
                ]
            self._execute(
                f"INSERT INTO {self._table} (event_type, service_name, topic, message_key, payload, max_retry,"
                f" traceparent, event_id) VALUES {', '.join(['(%s, %s, %s, %s, %s, %s, %s, %s)'] * len(chunk))}",
                values,
            )
            inserted += len(chunk)
        return inserted

    # --- relay ---------------------------------------------------------------------------------------------------

    def claim(
        self,
        *,
        shards: Collection[int] | None,
        limit: int,
        max_length: int,
        max_bytes: int = _UNBOUNDED,
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
        due, parameters = search.oldest_due(shards, limit) if after is None else search.due_after(after, shards, limit)
        found = self._fetch(
            "SELECT m.id, m.event_type, m.message_key,"
            f" CASE WHEN {length} <= %s THEN {self._sql.bytes_of.format('m.payload')} END, m.traceparent,"
            f" {self._sql.exact.format(self._sql.dated.format('m.next_retry_at'))},"
            f" {self._sql.exact.format(self._sql.now)}, {length}, m.event_id, m.next_retry_at < m.updated_at"
            f" FROM ({due}) due JOIN {self._table} m ON m.id = due.id",
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
                        long.get(row[0]) if row[3] is None else _in_bytes(row[3]),
                        row[4],
                        row[8],
                        published_for.get(row[0]) if row[9] else None,
                    )
                    for row in rows
                ),
                key=attrgetter("id"),
            ),
            claimed_at=rows[0][6],
            last=None if rows[0][5] is None or moment_of(rows[-1][5]) is None else (rows[-1][5], rows[-1][0]),
            is_cut=len(rows) < len(found),
        )

    def payloads_of(self, ids: Collection[int]) -> dict[int, bytes]:
        """Return the payload columns of those of ``ids`` that have a row, however long."""
        if not ids:
            return {}
        payload = self._sql.bytes_of.format("payload")
        found = self._fetch(f"SELECT id, {payload} FROM {self._table} WHERE id IN ({id_list(ids)})")
        return {row_id: _in_bytes(stored) or b"" for row_id, stored in found}

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

    def payload_of(self, row_id: int) -> bytes:
        """Return the payload column of one row, however long; nothing when it is NULL or the row is gone."""
        return self.payloads_of([row_id]).get(row_id, b"")

    def mark_published(self, ids: Collection[int], *, claimed_at: Any, redeliver_after: timedelta) -> Marked:
        """Mark rows that the broker acknowledged, without waiting for those that somebody else has locked.

        A consumer may hold a record before its row is marked, and its handler may take its time: whoever waited for it
        here would hold up every other key. A row that was put back after the claim is due later than ``claimed_at``: it
        is left alone, and so a relay that slept through the end of its lease overwrites nothing.
        """
        as_claimed = (_AS_CLAIMED, [claimed_at])
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

    def redeliver_lost(self, ids: Collection[int]) -> int:
        """Send ``published`` rows again whose records are lost, as somebody knows who received what lay behind them."""
        return self._move(lifecycle.REDELIVER, ids, f"next_retry_at = {self._sql.now}", skip_locked=True)

    def published(self, *, shards: Collection[int] | None, limit: int) -> list[tuple[int, str, str, int]]:
        """Return (id, event type, key, shard) of rows that wait for their consumer, in id order: a table as a queue."""
        waiting, parameters = self._searches.waiting(shards, limit)
        found = self._fetch(
            "SELECT m.id, m.event_type, m.message_key, m.shard"
            f" FROM ({waiting}) waiting JOIN {self._table} m ON m.id = waiting.id",
            parameters,
        )
        return sorted(found)

    # --- consumer: all of it inside the caller's transaction -------------------------------------------------------

    def lock(self, ids: Sequence[int], *, max_length: int) -> list[Locked]:
        """Lock rows in the order of their ids; return those that exist and that nobody else has locked, in that order.

        The payload comes along unless it is longer than ``max_length`` or its row is finished. What does not come is
        looked up by ``existing``: to wait for one row here would hold up all that is behind it.
        """
        if not ids:
            return []
        now, length = self._sql.now, self._length_of("payload")
        found = self._fetch(
            "SELECT id, event_type, message_key, status, retry_count, replay_count, max_retry,"
            f" (next_retry_at IS NULL OR next_retry_at <= {now}), traceparent,"
            f" CASE WHEN status IN (%s, %s) AND {length} <= %s THEN {self._sql.bytes_of.format('payload')} END,"
            f" CASE WHEN status IN (%s, %s) THEN {length} ELSE 0 END, interruptions, event_id"
            f" FROM {self._table}{self._sql.by_primary_key} WHERE id IN ({id_list(ids)})"
            f" ORDER BY id{self._sql.skip_locked}",
            [*lifecycle.UNFINISHED, max_length, *lifecycle.UNFINISHED],
        )
        return [
            Locked(a, b, c, d, e, f, g, bool(due), trace, _in_bytes(payload), size, interruptions, event_id)
            for a, b, c, d, e, f, g, due, trace, payload, size, interruptions, event_id in found
        ]

    def existing(self, ids: Collection[int]) -> dict[int, Identity]:
        """Return what those of ``ids`` are that have a row, by a plain read that waits for nobody."""
        if not ids:
            return {}
        found = self._fetch(
            f"SELECT id, event_type, message_key, event_id FROM {self._table}{self._sql.by_primary_key}"
            f" WHERE id IN ({id_list(ids)})"
        )
        return {row[0]: Identity(*row[1:]) for row in found}

    def blockers(self, locked: Sequence[Locked]) -> dict[str, Blocker]:
        """Return, by key, the oldest unfinished row before the last of ``locked`` and not one of them.

        A dead row that parks its key counts as unfinished: its successors wait until a person decides.
        """
        if not locked:
            return {}
        details = self._details(self._oldest_unfinished(locked, foreign_too=True))
        if any(row[6] in self.foreign_types for row in details):  # rare: rows from when the table was shared
            details = self._details(self._oldest_unfinished(locked, foreign_too=False))
        return {
            key: Blocker(
                id=row_id,
                due_at=moment_of(due_at) if status == Status.PENDING else None,
                unchanged_for=_time_since(updated_at, now),
                is_sent=status == Status.PUBLISHED,
            )
            for key, row_id, status, due_at, updated_at, now, _event_type in details
        }

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

    def wake(self, ids: Sequence[int]) -> int:
        """Make rows due that wait; what is in a back-off of its own, sent already or locked is left alone."""
        return self._move(
            lifecycle.WAIT,
            ids,
            f"next_retry_at = {self._sql.now}",
            also=self._waits,
            skip_locked=True,
        )

    def retry(self, row: Locked, *, due_at: datetime, failure: Failure) -> int:
        """Note a failed attempt and have the row come again at ``due_at``, unless that attempt is history by now."""
        return self._move(
            lifecycle.RETRY,
            [row.id],
            "retry_count = retry_count + 1, interruptions = 0, next_retry_at = %s, last_error = %s, error_class = %s,"
            " traceback = %s",
            [to_db(self._connection, due_at), *_columns(failure)],
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
            [to_db(self._connection, due_at), *(() if failure is None else _columns(failure))],
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

    def bury(self, row_id: int, *, failure: Failure, parks_key: bool) -> int:
        """Make a row dead, with the reason; ``parks_key`` holds back the later events of its key."""
        return self._bury(row_id, failure, parks_key)

    def bury_failed(self, row: Locked, *, failure: Failure, parks_key: bool, failed_attempts: int = 1) -> int:
        """Note the last attempt of a row and make it dead, unless that attempt is history by now."""
        return self._bury(row.id, failure, parks_key, failed_attempts=failed_attempts, also=_same_attempt(row))

    def bury_refused(self, row_id: int, *, failure: Failure, parks_key: bool, claimed_at: Any) -> int:
        """Make a row dead that the broker refuses, unless it was put back after the claim or somebody has locked it."""
        as_claimed = (_AS_CLAIMED, [claimed_at])
        return self._bury(row_id, failure, parks_key, also=as_claimed, skip_locked=True)

    # --- operator ------------------------------------------------------------------------------------------------

    def replay(self, ids: Sequence[int]) -> int:
        """Send dead rows again, with all their attempts before them; return how many were dead."""
        moved = self._move(
            lifecycle.REPLAY,
            ids,
            f"retry_count = 0, replay_count = replay_count + 1, interruptions = 0, next_retry_at = {self._sql.now},"
            " dead_at = NULL, parks_key = %s, resolved_at = NULL, resolved_by = '', resolution = ''",
            [False],
        )
        self._wake_successors(ids)
        return moved

    def give_up(self, ids: Sequence[int], *, by: str, reason: str) -> int:
        """Take dead rows off the open list for good; return how many were dead and open."""
        moved = self._move(
            lifecycle.GIVE_UP,
            ids,
            f"resolved_at = {self._sql.now}, resolved_by = %s, resolution = %s, parks_key = %s",
            [storable(by, 150), storable(reason, 500), False],
            also=("resolved_at IS NULL", []),
        )
        self._wake_successors(ids)
        return moved

    def edit(self, row_id: int, *, payload: bytes) -> int:
        """Replace the payload column of a dead row; return 0 when it is not dead any more."""
        return self._move(lifecycle.EDIT, [row_id], "payload = %s", [payload.decode()])

    def prune(self, *, consumed_before: datetime, after_id: int, limit: int) -> Pruned:
        """Delete consumed rows among the next ``limit`` rows behind ``after_id``, oldest first, by primary key.

        Rows are picked first and deleted by id, skipping locked ones: a cleaner that deletes by status deadlocks with
        consumers (docs/performance.md).
        """
        window = self._fetch(
            f"SELECT id, status, {self._sql.dated.format('consumed_at')}, {self._sql.dated.format('created_at')}"
            f" FROM {self._table} WHERE id > %s ORDER BY id LIMIT %s",
            [after_id, limit],
        )
        if not window:
            return Pruned()
        candidates = [
            row_id
            for row_id, status, consumed_at, _ in window
            if status == Status.CONSUMED and _is_before(consumed_at, consumed_before)
        ]
        deleted = 0
        ids = self._find([Status.CONSUMED], candidates, lock=True)
        if ids:
            deleted = self._execute(self._sql.delete_by_id.format(table=self._table, ids=id_list(ids)))
        # Ids grow with time, so behind a row as young as the limit there is nothing left to delete.
        reached_young = not any(_is_before(row[3], consumed_before, unknown=True) for row in window)
        return Pruned(deleted, None if reached_young or len(window) < limit else window[-1][0])

    def now(self) -> datetime:
        """Return the database's clock."""
        return from_db(self._fetch(f"SELECT {self._sql.now}")[0][0])

    # --- inside --------------------------------------------------------------------------------------------------

    @property
    def _connection(self) -> Any:
        return connections[self.route.database]

    @property
    def _sql(self) -> Dialect:
        return dialect_of(self._connection)

    @property
    def _searches(self) -> Searches:
        return Searches(self._table, self._sql, self.foreign_types)

    @property
    def _table(self) -> str:
        return self.route.table

    def _find(
        self,
        statuses: Sequence[Status],
        ids: Collection[int],
        *,
        also: tuple[str, Sequence[Any]] = ("", ()),
        lock: bool = False,
    ) -> list[int]:
        """Return those of ``ids`` in one of ``statuses``; ``lock`` locks them and leaves out what others hold."""
        if not ids:
            return []
        condition, more = also
        found = self._fetch(
            f"SELECT id FROM {self._table}{self._sql.by_primary_key}"
            f" WHERE id IN ({id_list(ids)}) AND status IN ({placeholders(statuses)})"
            f"{f' AND {condition}' if condition else ''}{self._sql.skip_locked if lock else ''}",
            [*statuses, *more],
        )
        return [row[0] for row in found]

    def _bury(
        self,
        row_id: int,
        failure: Failure,
        parks_key: bool,
        *,
        failed_attempts: int = 0,
        also: tuple[str, Sequence[Any]] = ("", ()),
        skip_locked: bool = False,
    ) -> int:
        now = self._sql.now
        return self._move(
            lifecycle.BURY,
            [row_id],
            f"retry_count = retry_count + %s, dead_at = {now}, next_retry_at = {now}, last_error = %s,"
            f" error_class = %s, traceback = %s, parks_key = %s{', interruptions = 0' if failed_attempts else ''}",
            [failed_attempts, *_columns(failure), parks_key],
            also=also,
            skip_locked=skip_locked,
        )

    def _move(
        self,
        transition: Transition,
        ids: Collection[int],
        assignments: str,
        values: Sequence[Any] = (),
        *,
        also: tuple[str, Sequence[Any]] = ("", ()),
        skip_locked: bool = False,
    ) -> int:
        """Apply ``transition`` to those of ``ids`` that are in one of its source statuses; return how many.

        With ``skip_locked``, but for those that somebody else has locked: in two statements, as MySQL has none for it.
        """
        if not ids:
            return 0
        if skip_locked:
            with own_transaction(self.route.database):
                free = self._find(transition.sources, ids, also=also, lock=True)
                return self._move(transition, free, assignments, values, also=also)
        condition, more = also
        return self._execute(
            f"UPDATE {self._table}{self._sql.by_primary_key}"
            f" SET status = %s, updated_at = {self._sql.now}, {assignments}"
            f" WHERE id IN ({id_list(ids)}) AND status IN ({placeholders(transition.sources)})"
            f"{f' AND {condition}' if condition else ''}",
            [transition.target, *values, *transition.sources, *more],
        )

    def _oldest_unfinished(self, locked: Sequence[Locked], *, foreign_too: bool) -> list[int]:
        """Return, one for each key that has any, the smallest unfinished id before the last of ``locked``."""
        keys = {row.message_key for row in locked}
        oldest: dict[str, int] = {}
        for key, row_id in self._fetch(*self._searches.oldest_unfinished(locked, foreign_too=foreign_too)):
            if key in keys:  # and not one that the column's collation takes for one of them
                oldest[key] = min(row_id, oldest.get(key, row_id))
        return sorted(oldest.values())

    def _details(self, ids: Sequence[int]) -> list[Any]:
        if not ids:
            return []
        return self._fetch(
            f"SELECT message_key, id, status, {self._sql.dated.format('next_retry_at')},"
            f" {self._sql.dated.format('updated_at')}, {self._sql.now}, event_type"
            f" FROM {self._table}{self._sql.by_primary_key} WHERE id IN ({id_list(ids)})"
        )

    def _wake_successors(self, ids: Sequence[int]) -> None:
        """Make rows that wait behind ``ids`` due now; what is in a back-off of its own keeps it."""
        if not ids:
            return
        keys = [
            row[0]
            for row in self._fetch(f"SELECT DISTINCT message_key FROM {self._table} WHERE id IN ({id_list(ids)})")
        ]
        if keys:
            waiting = self._fetch(
                f"SELECT id FROM {self._table} WHERE message_key IN ({placeholders(keys)}) AND status = %s"
                f" AND id > %s AND retry_count = 0 AND next_retry_at > {self._sql.now}",
                [*keys, Status.PENDING, min(ids)],
            )
            self._move(
                lifecycle.WAIT, [row[0] for row in waiting], f"next_retry_at = {self._sql.now}", also=self._waits
            )

    @property
    def _waits(self) -> tuple[str, Sequence[Any]]:
        """Return the condition that a row waits for a predecessor, and is neither sent nor in a back-off of its own."""
        return f"status = %s AND retry_count = 0 AND next_retry_at > {self._sql.now}", [Status.PENDING]

    def _execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return int(cursor.rowcount)

    def _length_of(self, column: str) -> str:
        """Return the text of a column's length in bytes; 0 for NULL, which tables of other software allow."""
        return f"COALESCE({self._sql.length.format(column)}, 0)"

    def _fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())


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


def _is_before(value: Any, limit: datetime, *, unknown: bool = False) -> bool:
    """Say whether a column's moment lies before ``limit``; ``unknown`` where it has none."""
    moment = moment_of(value)
    return unknown if moment is None else moment < limit


def _columns(failure: Failure) -> list[Any]:
    return [
        storable(failure.reason, LAST_ERROR_MAX_LENGTH),
        storable(failure.error_class, 200),
        None if failure.traceback is None else storable(failure.traceback, TRACEBACK_MAX_LENGTH),
    ]


def _due_order(row: Sequence[Any]) -> tuple[bool, Any, int]:
    """Return what a claimed row is sorted by, as the search for what is due sorts: what has no moment comes first."""
    return row[5] is not None, row[5], row[0]


def _in_bytes(stored: str | bytes | None) -> bytes | None:
    """Return a payload as UTF-8: a text with one character outside of the BMP takes 4 bytes for each, and is copied.

    That is as MySQL's driver gives it; the others give texts, which are let go of here.
    """
    return stored.encode() if isinstance(stored, str) else stored
