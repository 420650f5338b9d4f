"""What raw SQL needs to know of a database: its clock, its locks, its errors.

Table names come from ``ServiceRoute``, which allows letters, digits and ``_`` only; values are always parameters.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import DatabaseError, InterfaceError, OperationalError


@dataclass(frozen=True, slots=True)
class Dialect:
    """Fragments of SQL that differ."""

    now: str
    """The current time in UTC, as ``outbox.fields.UtcNow``."""
    length: str = "OCTET_LENGTH({})"
    """The length of a text in bytes, which is what brokers and packets are limited by."""
    exact: str = "{}"
    """A moment so that, given back as a parameter, it compares equal to its column, and as large as it is late."""
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


_DIALECTS: Final = {
    "mysql": Dialect(
        now="UTC_TIMESTAMP(6)",
        # To make a datetime takes the driver a microsecond, and a claim has a thousand that nobody computes with.
        exact="CAST({} AS CHAR)",
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
    """Return ``1, 2, …``: ids as literals, which spares the driver the quoting of hundreds of parameters."""
    return ", ".join(str(int(each)) for each in ids)


def storable(text: str, max_length: int | None = None) -> str:
    """Return ``text``, cut at ``max_length`` characters, in a form that every database takes.

    PostgreSQL has no NUL and no encoding has half a surrogate pair; an exception's message may hold either.
    """
    return text[:max_length].encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")[:max_length]


def from_db(value: Any) -> datetime:
    """Turn what a driver gives for a datetime column or the clock into an aware datetime in UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    moment: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return moment


def to_db(connection: BaseDatabaseWrapper, value: datetime) -> Any:
    """Turn an aware datetime into what the driver wants as a parameter."""
    return connection.ops.adapt_datetimefield_value(value.astimezone(UTC))


class Trouble(enum.Enum):
    """Whose fault a database error is."""

    OUTAGE = "outage"
    """The database is away: wait, nobody's fault."""
    CONTENTION = "contention"
    """Lost a deadlock or waited too long for a lock: do the transaction again."""
    STATEMENT = "statement"
    """The statement itself is wrong."""

    @property
    def state(self) -> str:
        """Return what to call the database, for a person."""
        return "busy" if self is Trouble.CONTENTION else "away"


# MySQL error numbers: https://dev.mysql.com/doc/mysql-errors/8.4/en/ (server 1xxx, client 2xxx); 1927 is MariaDB's
# "Connection was killed".
_MYSQL_OUTAGE: Final = frozenset(
    {1040, 1053, 1077, 1078, 1079, 1152, 1158, 1159, 1160, 1161, 1184, 1203, 1226, 1290, 1317}
)
_MYSQL_OUTAGE_CLIENT: Final = frozenset({1927, 2002, 2003, 2004, 2005, 2006, 2012, 2013, 2026, 2055})
_MYSQL_LOST_DEADLOCK: Final = 1213
_MYSQL_CONTENTION: Final = frozenset({1020, 1205, _MYSQL_LOST_DEADLOCK})
# SQLSTATE classes: https://www.postgresql.org/docs/current/errcodes-appendix.html
_PG_OUTAGE: Final = re.compile(r"08...|57P0[1-5]|53...|58...|25006")
_PG_CONTENTION: Final = frozenset({"40001", "40P01", "55P03"})
_SQLITE_OUTAGE: Final = (
    "disk i/o error",
    "unable to open database file",
    "database or disk is full",
    "readonly database",
)


def trouble_of(error: BaseException, using: str) -> Trouble:
    """Say whose fault ``error`` is, by its code first and by asking the connection last."""
    if not isinstance(error, (DatabaseError, InterfaceError)):
        return Trouble.STATEMENT
    connection = connections[using]
    known = _BY_CODE[connection.vendor](error) if connection.vendor in _BY_CODE else None
    if known is not None:
        return known
    if isinstance(error, (OperationalError, InterfaceError)) and not is_usable(using):
        return Trouble.OUTAGE
    return Trouble.STATEMENT


def is_usable(using: str) -> bool:
    """Ask the database on ``using`` whether it is there."""
    connection = connections[using]
    return connection.connection is not None and connection.is_usable()


class RolledBackWatch:
    """Sees a statement whose error rolled the whole transaction back, though whoever sent it goes on as if not.

    Around the statements of code that is not ours, by ``connection.execute_wrapper``: MySQL begins another transaction
    silently after a lost deadlock, so that an error that was caught would take along what was done before. An outage
    that was caught could be taken for what that code made of it. What fails because that code closed the connection
    itself is neither.
    """

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        try:
            return execute(sql, params, many, context)
        except (DatabaseError, InterfaceError) as error:
            connection = context["connection"]
            is_lost_deadlock = connection.vendor == "mysql" and error.args[:1] == (_MYSQL_LOST_DEADLOCK,)
            is_open = not connection.closed_in_transaction
            if is_lost_deadlock or (is_open and trouble_of(error, connection.alias) is Trouble.OUTAGE):
                self._error = error
            raise

    def check(self) -> None:
        """Raise the error that was seen, if any."""
        if self._error is not None:
            raise self._error


def _mysql_trouble(error: BaseException) -> Trouble | None:
    code = error.args[0] if error.args else None
    if code in _MYSQL_OUTAGE or code in _MYSQL_OUTAGE_CLIENT:
        return Trouble.OUTAGE
    return Trouble.CONTENTION if code in _MYSQL_CONTENTION else None


def _postgresql_trouble(error: BaseException) -> Trouble | None:
    state = getattr(error.__cause__, "sqlstate", None)
    if state is None:
        # What the server did not say itself is said by the client, and then the connection is lost.
        return Trouble.OUTAGE if isinstance(error, OperationalError) else None
    if _PG_OUTAGE.fullmatch(state):
        return Trouble.OUTAGE
    return Trouble.CONTENTION if state in _PG_CONTENTION else None


def _sqlite_trouble(error: BaseException) -> Trouble | None:
    text = str(error).lower()
    if "locked" in text or "busy" in text:
        return Trouble.CONTENTION
    return Trouble.OUTAGE if any(sign in text for sign in _SQLITE_OUTAGE) else None


_BY_CODE: Final = {"mysql": _mysql_trouble, "postgresql": _postgresql_trouble, "sqlite": _sqlite_trouble}
