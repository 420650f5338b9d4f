"""What raw SQL needs to know of a database: its clock, its locks, its errors.

Table names come from ``ServiceRoute``, which allows letters, digits and ``_`` only; values are always parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.fields import DATED


@dataclass(frozen=True, slots=True)
class Dialect:
    """Fragments of SQL that differ."""

    now: str
    """The current time in UTC, as ``outbox.fields.UtcNow``."""
    length: str = "OCTET_LENGTH({})"
    """The length of a text in bytes, which is what brokers and packets are limited by."""
    exact: str = "{}"
    """A moment so that, given back as a parameter, it compares equal to its column, and as large as it is late."""
    dated: str = "{}"
    """A column of times, NULL where it holds what is no time: see ``moment_of``."""
    bytes_of: str = "{}"
    """A column of texts as their bytes: a collation may take ``Conv`` and ``conv`` for one, or ``a`` and ``a `` with a
    blank. No index is searched by it, so it goes with what narrows the search."""
    grouped: str = "{}"
    """The same to group by, in the order of an index."""
    nulls_first: bool = True
    """An index in ascending order begins with NULL."""
    by_primary_key: str = ""
    """Hint behind the table's name: look the ids up by primary key. Locks are then taken in one order everywhere."""
    by_secondary_index: str = ""
    """The opposite hint. With the primary key in sight MySQL merges two indexes, or reads one from its beginning."""
    behind_row: str = "(next_retry_at, id) > (%s, %s)"
    """What lies behind a row in the order of due times, given its time and id (and its time again)."""
    delete_by_id: str = "DELETE FROM {table} WHERE id IN ({ids})"
    for_update: str = ""
    skip_locked: str = ""

    def is_one_of(self, column: str, values: Sequence[str]) -> str:
        """Return the condition that a column of texts is one of ``values``, its parameters, byte for byte."""
        return f"{self.bytes_of.format(column)} IN ({placeholders(values)})"

    def is_none_of(self, column: str, values: Sequence[str]) -> str:
        """Return the opposite condition."""
        return f"{self.bytes_of.format(column)} NOT IN ({placeholders(values)})"


_DIALECTS: Final = {
    "mysql": Dialect(
        now="UTC_TIMESTAMP(6)",
        # To make a datetime takes the driver a microsecond, and a claim has a thousand that nobody computes with.
        exact="CAST({} AS CHAR)",
        dated=DATED["mysql"],
        bytes_of="CAST({} AS BINARY)",
        grouped="{0}, CAST({0} AS BINARY)",
        by_primary_key=" FORCE INDEX (PRIMARY)",
        by_secondary_index=" IGNORE INDEX (PRIMARY)",
        # The comparison of pairs is not searched by index:
        # https://dev.mysql.com/doc/refman/8.4/en/row-constructor-optimization.html
        behind_row="((next_retry_at = %s AND id > %s) OR next_retry_at > %s)",
        # A list of ids that covers much of a small table is deleted by a full scan, hint or not, and the scan waits for
        # rows that others hold; a join that starts from the ids never is.
        delete_by_id=(
            "DELETE m FROM JSON_TABLE('[{ids}]', '$[*]' COLUMNS (id BIGINT PATH '$')) picked"
            " STRAIGHT_JOIN {table} m ON m.id = picked.id"
        ),
        for_update=" FOR UPDATE",
        skip_locked=" FOR UPDATE SKIP LOCKED",
    ),
    "postgresql": Dialect(
        now="STATEMENT_TIMESTAMP()",
        dated=DATED["postgresql"],
        nulls_first=False,
        for_update=" FOR UPDATE",
        skip_locked=" FOR UPDATE SKIP LOCKED",
    ),
    # SQLite has one writer at a time: a transaction begun IMMEDIATE has locked every row already.
    # Its moments are texts, with or without a fraction: the driver's datetime would not compare equal to its column.
    "sqlite": Dialect(
        now="STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW')",
        length="LENGTH(CAST({} AS BLOB))",
        exact="CAST({} AS TEXT)",
        dated=DATED["sqlite"],
    ),
}

SUPPORTED_VENDORS: Final = tuple(_DIALECTS)


def dialect_of(connection: BaseDatabaseWrapper) -> Dialect:
    """Return the fragments for the connection's database.

    :raises NotImplementedError: the database is none of MySQL, MariaDB, PostgreSQL and SQLite.
    """
    try:
        return _DIALECTS[connection.vendor]
    except KeyError:
        raise NotImplementedError(f"the outbox has no SQL for {connection.vendor!r}") from None


def placeholders(values: Iterable[object]) -> str:
    """Return ``%s, %s, …``, one for each value."""
    return ", ".join("%s" for _ in values)


def id_list(ids: Iterable[int]) -> str:
    """Return ``1, 2, …``: ids as literals, which spares the driver the quoting of hundreds of parameters.

    :raises TypeError: one of them is no ``int``.
    """
    return ", ".join(map(int.__repr__, ids))


def from_db(value: Any) -> datetime:
    """Turn what a driver gives for a datetime column or the clock into an aware datetime in UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    moment: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return moment


def moment_of(value: Any) -> datetime | None:
    """Turn what a driver gives for a datetime column into an aware datetime in UTC; None for what is no time.

    Other software may have written NULL, a zero date (``0000-00-00 00:00:00``, which MySQL's driver gives as None), or,
    in SQLite, any text. Such a value says no more than NULL does.
    """
    try:
        return None if value is None else from_db(value)
    except ValueError:
        return None


def to_db(connection: BaseDatabaseWrapper, value: datetime) -> Any:
    """Turn an aware datetime into what the driver wants as a parameter."""
    return connection.ops.adapt_datetimefield_value(value.astimezone(UTC))
