"""Inserting many rows in few statements, on every database: what handlers of lists write with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from django.db import connections

from outbox.storage.chunks import chunks
from outbox.storage.dialects import dialect_of, to_db

__all__ = ["MAX_ROWS", "BulkInsert", "ignoring_known"]

MAX_ROWS: Final = 500
"""Rows in one statement at the most."""
MAX_CHARACTERS: Final = 2 * 1024 * 1024
"""In one statement: escaped and in UTF-8 it stays below MariaDB's usual ``max_allowed_packet`` of 16 MiB."""


@dataclass(frozen=True, slots=True)
class BulkInsert:
    """An INSERT of any number of rows. Names are the code's own; values are always parameters.

    ``clock_columns`` come behind ``columns`` and get the database's time. ``on_conflict`` is the clause, by vendor
    (``mysql``, ``postgresql``, ``sqlite``), for a row whose key is there already, with ``{now}`` for the database's
    time; then the keys of the rows should be unique and sorted, so that two transactions lock them in one order.
    """

    table: str
    columns: tuple[str, ...]
    clock_columns: tuple[str, ...] = ()
    on_conflict: Mapping[str, str] = field(default_factory=dict)

    def run(self, rows: Iterable[Sequence[Any]], *, using: str) -> None:
        """Insert ``rows``, values in the order of ``columns``, in the caller's transaction on database alias ``using``.

        :raises DatabaseError: the database refuses a row, or is unavailable.
        """
        connection = connections[using]
        now = dialect_of(connection).now
        names = ", ".join((*self.columns, *self.clock_columns))
        row_of_values = ", ".join(["%s"] * len(self.columns) + [now] * len(self.clock_columns))
        conflict = self.on_conflict.get(connection.vendor, "").replace("{now}", now)
        for chunk in chunks(rows, _characters, max_items=MAX_ROWS, max_bytes=MAX_CHARACTERS):
            values = ", ".join([f"({row_of_values})"] * len(chunk))
            parameters = [
                to_db(connection, value) if isinstance(value, datetime) else value for row in chunk for value in row
            ]
            with connection.cursor() as cursor:
                cursor.execute(f"INSERT INTO {self.table} ({names}) VALUES {values} {conflict}", parameters)


def ignoring_known(key: str) -> dict[str, str]:
    """Return the ``on_conflict`` that leaves a row alone whose ``key`` (columns, by commas) is there already.

    The table has a column ``id``.
    """
    standard = f"ON CONFLICT ({key}) DO NOTHING"
    # INSERT IGNORE would also swallow values that do not fit.
    return {"mysql": "ON DUPLICATE KEY UPDATE id = id", "postgresql": standard, "sqlite": standard}


def _characters(row: Sequence[Any]) -> int:
    return sum(len(value) for value in row if isinstance(value, str))
