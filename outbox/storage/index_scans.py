"""Reads ids along an index, from a place up or down: what paging needs of a table of any size.

The columns in ``where`` and then ``moment`` and ``id`` are the leading columns of an index, so a page costs as many
index entries as it has rows. ``filters`` are looked at row by row. So that a filter that matches nothing does not read
the whole table, they see the next ``window`` rows only; then the scan gives up and says where. The window is a subquery
with a LIMIT: no optimizer reads past it, whatever it believes about the filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from django.db import connections

from outbox.storage.conditions import FIRST_MOMENT
from outbox.storage.dialects import dialect_of, from_db, moment_of, to_db
from outbox.storage.positions import LATE, Found, Gap, Position, Slice

WINDOW: Final = 10_000
"""Rows that one scan looks at when it has filters. Looking one up costs some microseconds."""

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_LAST_MOMENT: Final = "'9999-12-30'"
"""The last that every driver has a datetime for; above is PostgreSQL's infinity, which it takes for no parameter."""
_ZERO: Final = ""
"""Stands for a zero date in a position."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What a column has to be: ``Condition("status", "= %s", ("dead",))``."""

    column: str
    test: str
    parameters: tuple[Any, ...] = ()

    @property
    def sql(self) -> str:
        return f"{self.column} {self.test}"


@dataclass(frozen=True, slots=True)
class _Bound:
    """The condition of the rows beyond a place."""

    sql: str
    parameters: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class IndexScan:
    """The rows of ``table`` on the alias ``using``, by (``moment``, id) or, without ``moment``, by id.

    Rows whose ``moment`` is NULL are the oldest, behind those where it is a zero date; those where it is infinity are
    the newest. All of these are in the order of ids.
    ``rank`` is the column by which rows of several scans are merged.
    """

    using: str
    table: str
    where: tuple[Condition, ...] = ()
    moment: str | None = None
    rank: str = "id"
    filters: tuple[Condition, ...] = ()
    window: int = WINDOW
    by_id: str | None = None
    """What stands for the moment in positions, where rows are in the order of ids although there is a moment."""

    def read(self, gap: Gap | None, *, upward: bool, limit: int) -> Slice:
        """Return up to ``limit`` rows from ``gap`` on."""
        rows: list[Found] = []
        for segment, start in self._segments(gap, upward=upward):
            part = segment._read_segment(start, upward=upward, limit=limit - len(rows))  # noqa: SLF001 - one of itself
            rows += part.rows
            if part.stopped is not None or len(rows) >= limit:
                return Slice(rows, part.stopped)
        return Slice(rows)

    def _segments(self, gap: Gap | None, *, upward: bool) -> list[tuple[IndexScan, Gap | None]]:
        """Cut the scan by what its rows have for a moment: databases disagree where NULL sorts, or what a time is."""
        if self.moment is None:
            return [(self, gap)]
        dated = Condition(self.moment, f"BETWEEN {FIRST_MOMENT} AND {_LAST_MOMENT}")
        segments = [
            replace(self, where=(*self.where, Condition(self.moment, f"> {_LAST_MOMENT}")), by_id=LATE),
            replace(self, where=(*self.where, dated)),
            replace(self, where=(*self.where, Condition(self.moment, f"< {FIRST_MOMENT}")), by_id=_ZERO),
            replace(self, where=(*self.where, Condition(self.moment, "IS NULL"))),
        ]
        if gap is None:
            return [(each, None) for each in segments]
        at = {LATE: 0, _ZERO: 2, None: 3}.get(gap.at.moment, 1)
        beyond = segments[:at][::-1] if upward else segments[at + 1 :]
        return [(segments[at], gap), *((each, None) for each in beyond)]

    def _read_segment(self, start: Gap | None, *, upward: bool, limit: int) -> Slice:
        conditions: list[Condition | _Bound] = [*self.where]
        if start is not None:
            conditions.append(self._beyond(start, upward=upward))
        if not self.filters:
            return Slice(self._select(self.table, conditions, upward=upward, limit=limit))
        columns = dict.fromkeys(["id", self.moment or "id", self.rank, *(each.column for each in self.filters)])
        window, parameters = self._query(", ".join(columns), self.table, conditions, upward=upward, limit=self.window)
        rows = self._select(f"({window}) looked_at", self.filters, upward=upward, limit=limit, before=parameters)
        if len(rows) >= limit:
            return Slice(rows)
        last = self._select(self.table, conditions, upward=upward, limit=1, offset=self.window - 1)
        return Slice(rows, last[0] if last else None)

    def _beyond(self, gap: Gap, *, upward: bool) -> _Bound:
        """Return the condition of the rows above or below ``gap``; the row that it names may be among them."""
        position, strict = gap.at, ">" if upward else "<"
        by_id = f"id {strict}{'=' if gap.below == upward else ''} %s"
        if self.moment is None or self.by_id is not None or not position.moment:
            return _Bound(by_id, (position.id,))
        moment = self._parameter(position.moment)
        return _Bound(
            f"{self.moment} {strict}= %s AND ({self.moment} {strict} %s OR {by_id})", (moment, moment, position.id)
        )

    def _select(
        self,
        source: str,
        conditions: Sequence[Condition | _Bound],
        *,
        upward: bool,
        limit: int,
        offset: int = 0,
        before: Sequence[Any] = (),
    ) -> list[Found]:
        """Return rows of ``source``, whose own parameters are ``before``."""
        rank = self.rank if self.by_id is None else None
        columns = f"id, {self._column(self._order)}, {self._rank_column(rank)}"
        sql, parameters = self._query(columns, source, conditions, upward=upward, limit=limit, offset=offset)
        with connections[self.using].cursor() as cursor:
            cursor.execute(sql, [*before, *parameters])
            return [
                Found(
                    Position(self.by_id if moment is None else str(moment), row_id),
                    _NEVER if self.by_id == LATE else _rank(rank),
                )
                for row_id, moment, rank in cursor.fetchall()
            ]

    def _query(
        self,
        columns: str,
        source: str,
        conditions: Sequence[Condition | _Bound],
        *,
        upward: bool,
        limit: int,
        offset: int = 0,
    ) -> tuple[str, list[Any]]:
        direction = "ASC" if upward else "DESC"
        order = ", ".join(f"{column} {direction}" for column in (self._order, "id") if column)
        where = " AND ".join(f"({condition.sql})" for condition in conditions)
        parameters = [parameter for condition in conditions for parameter in condition.parameters]
        return (
            f"SELECT {columns} FROM {source}{' WHERE ' if where else ''}{where} ORDER BY {order} LIMIT %s OFFSET %s",
            [*parameters, limit, offset],
        )

    @property
    def _order(self) -> str | None:
        return self.moment if self.by_id is None else None

    def _column(self, name: str | None) -> str:
        """Return the expression that gives a column; SQLite's own text of a time, since it compares times as text."""
        if name is None or name == "id":
            return name or "NULL"
        return f"CAST({name} AS TEXT)" if connections[self.using].vendor == "sqlite" else name

    def _rank_column(self, name: str | None) -> str:
        """Return the expression that gives a column of ids or times."""
        return name or "NULL" if name in {None, "id"} else dialect_of(connections[self.using]).dated.format(name)

    def _parameter(self, moment: str) -> Any:
        connection = connections[self.using]
        return moment if connection.vendor == "sqlite" else to_db(connection, from_db(moment))


def _rank(value: Any) -> Any:
    """Return what rows are merged by: an id, or a time, the oldest where it is NULL."""
    if value is None:
        return _LONG_AGO
    return value if isinstance(value, int) else moment_of(value) or _LONG_AGO
