"""Rows that a session in another time zone wrote: it takes its local time for that of the outbox, which is UTC."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from django.db import connections

from outbox.lifecycle import Status
from outbox.storage.dialects import dialect_of, from_db, to_db

_CLOCKS_DIFFER: Final = timedelta(minutes=5)
"""Time zones differ by a quarter of an hour at least, clocks of hosts by far less."""


def rows_ahead_of_time(using: str, table: str, *, cap: int) -> tuple[int, bool]:
    """Count pending rows that are due in the future though nobody put them off; say whether there may be more.

    Nothing is published for later. So they are as they were inserted, or were inserted or changed in the future. Those
    that are due last are looked at, ``cap`` of them.
    """
    connection = connections[using]
    sql = dialect_of(connection)
    created_at, updated_at = map(sql.dated.format, ("created_at", "updated_at"))
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {sql.now}", [])
        late = to_db(connection, from_db(cursor.fetchone()[0]) + _CLOCKS_DIFFER)
        cursor.execute(
            f"SELECT COUNT(*), COUNT(CASE WHEN {created_at} > %s OR {updated_at} > %s"
            f" OR (retry_count = 0 AND put_back_count = 0 AND COALESCE({updated_at} <= {created_at}, TRUE)) THEN 1 END)"
            f" FROM (SELECT created_at, updated_at, retry_count, put_back_count FROM {table}"
            " WHERE status = %s AND next_retry_at > %s ORDER BY next_retry_at DESC LIMIT %s) last_due",
            [late, late, Status.PENDING.value, late, cap],
        )
        looked_at, found = cursor.fetchone()
    return found, found > 0 and looked_at == cap
