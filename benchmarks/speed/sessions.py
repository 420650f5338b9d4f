"""What the server counts for one connection of Django: every statement, transaction control too, and every byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import connection

_UPKEEP = (
    "outbox_shard_leases",
    "outbox_workers",
    "outbox_service_switches",
    "SELECT UTC_TIMESTAMP(6)",
    "COALESCE(published_at, updated_at)",
)
"""In statements that come by time and not by batch: who is alive and holds what, and now and then what is stuck."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters of a connection."""

    questions: int
    received: int
    sent: int


class Session:
    """The counters of the default connection."""

    def read(self) -> Counters:
        """Read them; this itself counts as one question."""
        with connection.cursor() as cursor:
            cursor.execute("SHOW SESSION STATUS WHERE Variable_name IN ('Questions', 'Bytes_received', 'Bytes_sent')")
            found = dict(cursor.fetchall())
        return Counters(int(found["Questions"]), int(found["Bytes_received"]), int(found["Bytes_sent"]))

    def since(self, before: Counters) -> Counters:
        """Return what happened since ``before`` was read."""
        now = self.read()
        return Counters(now.questions - before.questions - 1, now.received - before.received, now.sent - before.sent)


@dataclass(slots=True)
class Statements:
    """What code asked Django to execute: without transaction control."""

    work: list[str]
    upkeep: int = 0


@contextmanager
def counted() -> Iterator[Statements]:
    """Collect the statements inside."""
    statements = Statements([])

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if any(sign in sql for sign in _UPKEEP):
            statements.upkeep += 1
        else:
            statements.work.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        yield statements
