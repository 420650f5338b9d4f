"""The outbox's queries on a table that has rows of every kind, and the database's plan of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db import connections, transaction

from outbox.declarations.routes import ServiceRoute
from outbox.fields import SHARD_COUNT
from outbox.lifecycle import Status
from outbox.storage.repository import OutboxRepository
from outbox.storage.status_rows import StatusRows

Query = Callable[[OutboxRepository], object]

_KEYS: Final = 20_000
_BATCH: Final = 500
_PAYLOAD: Final = (
    '{"event_id":"e","event_type":"agent.state.snapshot.persist","event_version":"v1","aggregate_id":"conv","payload":"'
    + "x" * 800
    + '"}'
)


@dataclass(frozen=True, slots=True)
class Planned:
    """One statement and the rows of its ``EXPLAIN``."""

    sql: str
    plan: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Explained:
    """What a query did on the table."""

    spent_ms: float
    statements: list[Planned]


def fill(route: ServiceRoute, rows: int, *, unfinished: float = 0.01) -> None:
    """Bring the table to ``rows`` rows: the last share of them half pending, half published; 0.1 % dead, else consumed.

    Rows of an earlier fill are kept.
    """
    half = int(rows * unfinished / 2)
    connection, table = connections[route.database], route.table
    columns = "event_type, service_name, topic, message_key, payload"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM {table}")
        have = cursor.fetchone()[0]
        if not have:
            cursor.execute(
                f"INSERT INTO {table} ({columns}) VALUES ('agent.state.snapshot.persist', 'agent',"
                " 'smartflow.agent.outbox', 'conv-0', %s)",
                [_PAYLOAD],
            )
            have = 1
        while have < rows:
            step = min(have, rows - have, 100_000)
            cursor.execute(
                f"INSERT INTO {table} ({columns}) SELECT event_type, service_name, topic,"
                f" CONCAT('conv-', MOD(id * 7919 + {have}, {_KEYS})), payload FROM {table} ORDER BY id LIMIT {step}"
            )
            have += step
        cursor.execute(f"SELECT MAX(id) FROM {table}")
        last = cursor.fetchone()[0]
        cursor.execute(
            f"UPDATE {table} SET status = CASE WHEN id > {last - half} THEN 'pending'"
            f" WHEN id > {last - 2 * half} THEN 'published' WHEN MOD(id, 1000) = 0 THEN 'dead' ELSE 'consumed' END,"
            " published_at = created_at, consumed_at = created_at"
        )
        cursor.execute(f"ANALYZE TABLE {table}" if connection.vendor == "mysql" else f"ANALYZE {table}")
        cursor.fetchall() if connection.vendor == "mysql" else None


def queries(repository: OutboxRepository) -> Mapping[str, Query]:
    """Return what relay, consumer, people and statistics ask of the table, by name."""
    route = repository.route
    published, dead = (_ids(route, status, count) for status, count in (("published", _BATCH), ("dead", 50)))
    first = repository.claim(shards=None, limit=_BATCH, max_length=10**6)
    pending = [row.id for row in first.rows]
    now, old = datetime.now(UTC), timedelta(seconds=1)
    half = range(SHARD_COUNT // 2)
    return {
        "claim from the oldest": lambda r: r.claim(shards=None, limit=_BATCH, max_length=10**6),
        "claim, half of the shards": lambda r: r.claim(shards=half, limit=_BATCH, max_length=10**6),
        "claim, going on": lambda r: r.claim(shards=None, limit=_BATCH, max_length=10**6, after=first.last),
        "mark published": lambda r: r.mark_published(pending, claimed_at=first.claimed_at, redeliver_after=old),
        "redeliver": lambda r: r.redeliver(shards=None, published_before=now, limit=_BATCH),
        "published rows as a queue": lambda r: r.published(shards=None, limit=_BATCH),
        "lock a batch": lambda r: r.lock(published, max_length=10**6),
        "predecessors of a batch": lambda r: r.predecessors(r.lock(published, max_length=10**6)),
        "mark consumed": lambda r: r.mark_consumed(published),
        "put back": lambda r: r.wait(published, until=now),
        "replay": lambda r: r.replay(dead),
        "release a key": lambda r: r.release({"conv-0": 0}),
        "count what a key holds": lambda r: r.note_blocked({"conv-0": 1}, joining={}),
        "prune a window": lambda r: r.prune(consumed_before=now, after_id=0, limit=_BATCH),
        "count of a status, capped": lambda _: StatusRows(route).count(Status.CONSUMED),
        "age of what is due longest": lambda _: StatusRows(route).oldest_due_age(),
    }


def explain(repository: OutboxRepository, query: Query) -> Explained:
    """Run ``query`` twice, the first time to warm up, and roll it back; return the second's time and its plans."""
    alias, table = repository.route.database, repository.route.table
    with transaction.atomic(using=alias):
        query(repository)
        transaction.set_rollback(True, using=alias)
    with transaction.atomic(using=alias):
        began = time.perf_counter()
        with _recorded(alias, table) as statements:
            query(repository)
        spent_ms = (time.perf_counter() - began) * 1000
        planned = [Planned(sql, _plan(alias, sql, parameters)) for sql, parameters in statements]
        transaction.set_rollback(True, using=alias)
    return Explained(spent_ms, planned)


def _ids(route: ServiceRoute, status: str, count: int) -> list[int]:
    with connections[route.database].cursor() as cursor:
        cursor.execute(f"SELECT id FROM {route.table} WHERE status = %s ORDER BY id LIMIT %s", [status, count])
        return [row[0] for row in cursor.fetchall()]


def _plan(alias: str, sql: str, parameters: Any) -> list[dict[str, Any]]:
    # MySQL 9 answers as a tree unless it is asked for rows.
    form = "FORMAT=TRADITIONAL " if connections[alias].vendor == "mysql" else ""
    with connections[alias].cursor() as cursor:
        cursor.execute(f"EXPLAIN {form}{sql}", parameters)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


@contextmanager
def _recorded(alias: str, table: str) -> Iterator[list[tuple[str, Any]]]:
    """Collect the statements on the table that run inside the block."""
    statements: list[tuple[str, Any]] = []

    def record(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if table in sql:
            statements.append((sql, params))
        return execute(sql, params, many, context)

    with connections[alias].execute_wrapper(record):
        yield statements
