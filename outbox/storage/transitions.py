"""What changes rows of an outbox table: every change of ``status`` is one of the transitions of ``outbox.lifecycle``.

An update names the statuses that it is legal from and looks at the number of rows it changed, so a worker that acts on
old knowledge changes nothing. SQL is written by hand where the ORM costs more than half of the time (measured: docs/
performance.md). All times that are compared come from the database's clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from django.db import connections

from outbox import lifecycle
from outbox.declarations.routes import ServiceRoute
from outbox.fields import storable
from outbox.lifecycle import Status, Transition
from outbox.storage.dialects import Dialect, dialect_of, from_db, id_list, placeholders
from outbox.storage.queries import Searches
from outbox.storage.rows import Failure
from outbox.storage.sessions import own_transaction

LAST_ERROR_MAX_LENGTH: Final = 2000
TRACEBACK_MAX_LENGTH: Final = 100_000
_PUT_BACK: Final = {Status.PENDING: " put_back_count = put_back_count + 1,"}
"""What every transition to that status does besides: times alone, of three digits in some tables, do not tell a row
that was put back from one that was not."""

_AT_FIRST: Final[Mapping[str, str]] = {
    "status": f"'{Status.PENDING}'",
    "retry_count": "0",
    "next_retry_at": "{now}",
    "last_error": "NULL",
    "published_at": "NULL",
    "consumed_at": "NULL",
    "created_at": "{now}",
    "updated_at": "{now}",
    "traceparent": "''",
    "error_class": "''",
    "traceback": "NULL",
    "parks_key": "FALSE",
    "dead_at": "NULL",
    "resolved_at": "NULL",
    "resolved_by": "''",
    "resolution": "''",
    "replay_count": "0",
    "interruptions": "0",
    "event_id": "''",
    "put_back_count": "0",
}
"""What a row holds that is inserted, where its writer gives nothing else."""


def insertion(route: ServiceRoute, sql: Dialect, given: Mapping[str, str]) -> tuple[str, str]:
    """Return an INSERT up to its VALUES, and one row of these: ``given``, by column, and then what a row has at first.

    Every column is named: a table that is shared with other software may have lost the defaults of its columns.
    """
    values = {**given}
    for name, value in _AT_FIRST.items():
        values.setdefault(name, value.format(now=sql.now))
    names = (route.type_column if name == "event_type" else name for name in values)
    return f"INSERT INTO {route.table} ({', '.join(names)}) VALUES ", f"({', '.join(values.values())})"


@dataclass(frozen=True, slots=True)
class RowTransitions:
    """The outbox table of one service, and the one way to move its rows from one status to another.

    ``foreign_types`` are event types that other services own: their rows may lie in this table from the time when it
    was shared; they are neither sent nor waited for.
    """

    route: ServiceRoute
    foreign_types: tuple[str, ...] = field(default=())

    def now(self) -> datetime:
        """Return the database's clock."""
        return from_db(self._fetch(f"SELECT {self._sql.now}")[0][0])

    def payloads_of(self, ids: Collection[int]) -> dict[int, bytes]:
        """Return the payload columns of those of ``ids`` that have a row, however long."""
        if not ids:
            return {}
        payload = self._sql.bytes_of.format("payload")
        found = self._fetch(f"SELECT id, {payload} FROM {self._table} WHERE id IN ({id_list(ids)})")
        return {row_id: in_bytes(stored) or b"" for row_id, stored in found}

    def payload_of(self, row_id: int) -> bytes:
        """Return the payload column of one row, however long; nothing when it is NULL or the row is gone."""
        return self.payloads_of([row_id]).get(row_id, b"")

    @property
    def _connection(self) -> Any:
        return connections[self.route.database]

    @property
    def _sql(self) -> Dialect:
        return dialect_of(self._connection)

    @property
    def _searches(self) -> Searches:
        return Searches(self._table, self._sql, self.foreign_types, self._type)

    @property
    def _table(self) -> str:
        return self.route.table

    @property
    def _type(self) -> str:
        """Return the column of event types."""
        return self.route.type_column

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
            [failed_attempts, *columns(failure), parks_key],
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
            f" SET status = %s, updated_at = {self._sql.now},{_PUT_BACK.get(transition.target, '')} {assignments}"
            f" WHERE id IN ({id_list(ids)}) AND status IN ({placeholders(transition.sources)})"
            f"{f' AND {condition}' if condition else ''}",
            [transition.target, *values, *transition.sources, *more],
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


def columns(failure: Failure) -> list[Any]:
    return [
        storable(failure.reason, LAST_ERROR_MAX_LENGTH),
        storable(failure.error_class, 200),
        None if failure.traceback is None else storable(failure.traceback, TRACEBACK_MAX_LENGTH),
    ]


def in_bytes(stored: str | bytes | None) -> bytes | None:
    """Return a payload as UTF-8: a text with one character outside of the BMP takes 4 bytes for each, and is copied.

    That is as MySQL's driver gives it; the others give texts, which are let go of here.
    """
    return stored.encode() if isinstance(stored, str) else stored
