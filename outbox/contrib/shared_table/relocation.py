"""Moves rows of other services out of a table that was once shared, to their owners' tables.

Unfinished rows only (pending, published): what is finished stays where it was. Rows go in the order of their ids, in
bounded transactions, and a crash at any point moves nothing twice: on one database a batch is one transaction; across
two, markers beside the new rows say what has arrived, and are taken away when the old rows are gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db import connections, transaction

from outbox import lifecycle
from outbox.declarations.routes import RouteRegistry, ServiceRoute
from outbox.models import RehomedRow
from outbox.storage.dialects import dialect_of, id_list, moment_of, to_db
from outbox.storage.sessions import own_transaction
from outbox.storage.transitions import insertion

_BATCH_BYTES: Final = 8 * 1024 * 1024
_COLUMNS: Final = (
    "event_type",
    "message_key",
    "payload",
    "retry_count",
    "max_retry",
    "next_retry_at",
    "last_error",
    "created_at",
    "traceparent",
    "replay_count",
    "interruptions",
    "event_id",
)
_OF_OWNER: Final = ("service_name", "topic")
_TIMES: Final = frozenset({"next_retry_at", "created_at"})
"""Where one is none, the row is due at once, and was created at the moment of its move."""


@dataclass(frozen=True, slots=True)
class Misplaced:
    """Unfinished rows of one event type that lie in a table of another service."""

    event_type: str
    owner: str
    status: str
    rows: int


@dataclass(frozen=True, slots=True)
class Moved:
    """What one batch moved."""

    event_type: str
    owner: str
    rows: int


class Rehoming:
    """Moves the rows that lie in the table of ``source`` and belong to other services of ``registry``."""

    def __init__(self, source: ServiceRoute, registry: RouteRegistry) -> None:
        self._source = source
        self._registry = registry
        self._foreign = registry.types_of_others(source.service)

    def survey(self) -> list[Misplaced]:
        """Count what lies there, exactly, by event type and status; changes nothing."""
        if not self._foreign:
            return []
        found = self._fetch(
            f"SELECT {self._source.type_column}, status, COUNT(*) FROM {self._source.table}"
            f" WHERE {self._misplaced()} GROUP BY 1, 2 ORDER BY 1, 2",
            [*lifecycle.UNFINISHED, *self._foreign],
        )
        return [
            Misplaced(event_type, self._registry.resolve(event_type).service, status, rows)
            for event_type, status, rows in found
        ]

    def run(self, *, batch_size: int) -> Iterator[list[Moved]]:
        """Move batch after batch until a whole pass finds nothing; give what each batch moved.

        Stop between two batches whenever you like, and start again later.
        """
        if not self._foreign:
            return
        moved_in_pass = True
        while moved_in_pass:
            # Another pass, for rows that were committed late behind the place where this one was.
            moved_in_pass = False
            after = 0
            while ids := self._next_ids(after, batch_size):
                after = ids[-1]
                moved = self._move(ids)
                moved_in_pass = moved_in_pass or bool(moved)
                yield moved

    def _next_ids(self, after: int, limit: int) -> list[int]:
        hint = dialect_of(self._connection).by_primary_key
        found = self._fetch(
            f"SELECT id, LENGTH(payload) FROM {self._source.table}{hint} WHERE id > %s AND {self._misplaced()}"
            " ORDER BY id LIMIT %s",
            [after, *lifecycle.UNFINISHED, *self._foreign, limit],
        )
        ids: list[int] = []
        size = 0
        for row_id, length in found:
            size += length
            if ids and size > _BATCH_BYTES:
                break
            ids.append(row_id)
        return ids

    def _move(self, ids: Sequence[int]) -> list[Moved]:
        with own_transaction(self._source.database):
            sql = dialect_of(self._connection)
            rows = self._fetch(
                f"SELECT id, {', '.join(self._stored(name) for name in _COLUMNS)}"
                f" FROM {self._source.table}{sql.by_primary_key}"
                f" WHERE id IN ({id_list(ids)}) AND {self._misplaced()} ORDER BY id{sql.for_update}",
                [*lifecycle.UNFINISHED, *self._foreign],
            )
            by_owner: dict[str, list[Any]] = {}
            for row in rows:
                by_owner.setdefault(self._registry.resolve(row[1]).service, []).append(row)
            for owner, of_owner in by_owner.items():
                self._arrive(self._registry.catalog.route(owner), of_owner)
            if rows:
                moved = id_list(row[0] for row in rows)
                self._execute(self._source.database, sql.delete_by_id.format(table=self._source.table, ids=moved), [])
        for owner in by_owner:
            self._forget_markers(self._registry.catalog.route(owner), [row[0] for row in rows])
        counts: dict[tuple[str, str], int] = {}
        for owner, of_owner in by_owner.items():
            for row in of_owner:
                counts[row[1], owner] = counts.get((row[1], owner), 0) + 1
        return [Moved(event_type, owner, number) for (event_type, owner), number in sorted(counts.items())]

    def _arrive(self, route: ServiceRoute, rows: list[Any]) -> None:
        """Insert ``rows`` into their owner's table, those that have not arrived before a crash."""
        with transaction.atomic(using=route.database):
            if route.database != self._source.database:
                rows = self._not_arrived(route, rows)
            if not rows:
                return
            target = connections[route.database]
            now = dialect_of(target).now
            insert, one_row = insertion(
                route,
                dialect_of(target),
                {name: f"COALESCE(%s, {now})" if name in _TIMES else "%s" for name in (*_COLUMNS, *_OF_OWNER)},
            )
            values: list[Any] = []
            for row in rows:
                values += [
                    _moment(target, value) if name in _TIMES else value
                    for name, value in zip(_COLUMNS, row[1:], strict=True)
                ]
                values += [route.service, route.topic]
            self._execute(route.database, insert + ", ".join([one_row] * len(rows)), values)

    def _not_arrived(self, route: ServiceRoute, rows: list[Any]) -> list[Any]:
        markers = RehomedRow.objects.using(route.database)
        arrived = set(
            markers.filter(source_table=self._source.table, source_id__in=[row[0] for row in rows]).values_list(
                "source_id", flat=True
            )
        )
        missing = [row for row in rows if row[0] not in arrived]
        markers.bulk_create([RehomedRow(source_table=self._source.table, source_id=row[0]) for row in missing])
        return missing

    def _forget_markers(self, route: ServiceRoute, ids: Sequence[int]) -> None:
        if route.database != self._source.database:
            RehomedRow.objects.using(route.database).filter(source_table=self._source.table, source_id__in=ids).delete()

    def _stored(self, name: str) -> str:
        """Return what is read of a column; of a time that is none, NULL."""
        column = self._source.type_column if name == "event_type" else name
        return dialect_of(self._connection).dated.format(column) if name in _TIMES else column

    def _misplaced(self) -> str:
        sql = dialect_of(self._connection)
        return f"status IN (%s, %s) AND {sql.is_one_of(self._source.type_column, self._foreign)}"

    @property
    def _connection(self) -> Any:
        return connections[self._source.database]

    def _fetch(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())

    def _execute(self, using: str, sql: str, parameters: Sequence[Any]) -> None:
        with connections[using].cursor() as cursor:
            cursor.execute(sql, parameters)


def _moment(target: Any, value: Any) -> Any:
    moment = moment_of(value)
    return None if moment is None else to_db(target, moment)
