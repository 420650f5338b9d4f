"""Columns and expressions whose SQL differs from one database to the next."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import ExpressionWrapper
from django.db.models.sql.compiler import SQLCompiler

__all__ = ["KeyField", "MomentField", "ShardOf", "ShortTextField", "UtcNow", "from_now", "storable"]

SHARD_COUNT: Final = 16
"""Keys hash to this many shards: the most relays (and table-broker consumers) that can share one service.

It is part of a generated column, so changing it is a migration of every outbox table.
"""


class UtcNow(models.Func):
    """The database's clock in UTC, whatever the time zone of the session or of the server.

    Django's ``Now()`` follows the session's time zone on MySQL, so a row that another program inserts by default
    values could be due hours later.
    """

    output_field = models.DateTimeField()
    template = "CURRENT_TIMESTAMP"
    arity = 0

    def as_mysql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **context)

    def as_postgresql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template="STATEMENT_TIMESTAMP()", **context)

    def as_sqlite(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> tuple[str, Any]:
        return self.as_sql(
            compiler, connection, template="STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', 'NOW')", **context
        )


def from_now(delta: timedelta) -> ExpressionWrapper[Any]:
    """Return the moment ``delta`` from now (before now when negative) by the database's clock."""
    return ExpressionWrapper(
        UtcNow() + models.Value(delta, output_field=models.DurationField()), output_field=models.DateTimeField()
    )


class ShardOf(models.Func):
    """The shard of a message key, computed by the database, so that every row has it whoever wrote the row.

    The databases hash differently; nothing compares a shard of one with a shard of another.
    """

    output_field = models.SmallIntegerField()
    arity = 1

    def as_mysql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template=f"MOD(CRC32(%(expressions)s), {SHARD_COUNT})", **context)

    def as_postgresql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template=f"(HASHTEXT(%(expressions)s) & {SHARD_COUNT - 1})", **context)

    def as_sqlite(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> tuple[str, Any]:
        key = "%(expressions)s"
        template = (
            f"((COALESCE(UNICODE({key}), 0) * 31 + COALESCE(UNICODE(SUBSTR({key}, -1)), 0) * 7"
            f" + COALESCE(UNICODE(SUBSTR({key}, -2)), 0) * 3 + LENGTH({key})) & {SHARD_COUNT - 1})"
        )
        return self.as_sql(compiler, connection, template=template, **context)


NO_PAD_COLLATION: Final = "utf8mb4_0900_bin"
NO_PAD_COLLATION_OF_MARIADB: Final = "utf8mb4_nopad_bin"
_PADDING_COLLATION: Final = "utf8mb4_bin"
"""Takes ``a`` and ``a`` with a blank for one."""


def key_collation(connection: Any) -> str:
    """Return the best collation for texts that are compared byte for byte, of those that MySQL or MariaDB has.

    MySQL has one that tells blanks at the end apart from 8.0.17 on; ``check --database`` warns below that.
    """
    if connection.mysql_is_mariadb:
        return NO_PAD_COLLATION_OF_MARIADB
    return NO_PAD_COLLATION if connection.mysql_version >= (8, 0, 17) else _PADDING_COLLATION


class KeyField(models.CharField):  # type: ignore[type-arg]  # not subscriptable at run time
    """A text that is compared byte for byte: ``Conv-1``, ``conv-1`` and ``conv-1 `` are three keys, also on MySQL.

    MySQL's default collations ignore case and blanks at the end, which would merge keys in a unique index or a GROUP
    BY. The column gets its collation when it is made: a table that was made before keeps the one that it has.
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        parameters = super().db_parameters(connection)
        if connection.vendor == "mysql":
            parameters["collation"] = key_collation(connection)
        return parameters


DATED: Final = {
    # A zero date is no value that a strict server lets be assigned or compared with: not even a column's to itself.
    "mysql": "CASE WHEN MONTH({0}) * DAYOFMONTH({0}) > 0 THEN {0} END",
    # The driver has no datetime for infinity, nor for years before 1 and after 9999.
    "postgresql": "CASE WHEN {0} BETWEEN '0001-01-02' AND '9999-12-30' THEN {0} END",
    "sqlite": "CASE WHEN DATETIME({0}) >= '0001' THEN CAST({0} AS TEXT) END",
}
"""A column of times, NULL where it holds what is no time."""


class MomentField(models.DateTimeField):  # type: ignore[type-arg]  # not subscriptable at run time
    """A time that other software may have written as none: a zero date, infinity, the year 44 BC. It is read as None.

    In migrations it is a ``DateTimeField``.
    """

    def deconstruct(self) -> Any:
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.DateTimeField", args, kwargs

    def select_format(self, compiler: SQLCompiler, sql: str, params: Any) -> tuple[str, Any]:
        """Return the column as it is selected: a driver fails over what it has no datetime for."""
        dated = DATED[compiler.connection.vendor]
        return dated.format(sql), tuple(params) * dated.count("{0}")


class ShortTextField(models.TextField):  # type: ignore[type-arg]  # not subscriptable at run time
    """``TEXT`` on MySQL, where Django's own TextField is ``LONGTEXT``."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        return "text" if connection.vendor == "mysql" else super().db_type(connection)


def storable(text: str, max_length: int | None = None) -> str:
    """Return ``text``, cut at ``max_length`` characters, in a form that every database takes.

    PostgreSQL has no NUL and no encoding has half a surrogate pair; an exception's message may hold either.
    """
    return text[:max_length].encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")[:max_length]
