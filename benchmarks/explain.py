"""Print which index each of the outbox's queries uses, on a table of a million rows.

    DATABASE_URL=mysql://… python -m benchmarks.explain [--rows 1000000]

It fills ``agent_outbox_messages`` of that database (which must be empty or hold an earlier fill), so give it one of its
own. The table in docs/indexes.md is this program's output.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "smartflow.settings")
os.environ.setdefault("DEBUG", "true")

import django

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connection, transaction  # noqa: E402

from outbox import statistics  # noqa: E402
from outbox.catalog import repository_of, route_registry  # noqa: E402
from outbox.repository import OutboxRepository  # noqa: E402

TABLE = "agent_outbox_messages"


def fill(rows: int) -> None:
    """Bring the table to ``rows`` rows: 0.1 % dead, of the last 1 % half published and half pending, else consumed."""
    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM {TABLE}")
        have = cursor.fetchone()[0]
        columns = "event_type, service_name, topic, message_key, payload"
        if not have:
            cursor.execute(
                f"INSERT INTO {TABLE} ({columns}) VALUES ('agent.state.snapshot.persist', 'agent',"
                " 'smartflow.agent.outbox', 'conv-0', %s)",
                [
                    '{"event_id":"e","event_type":"agent.state.snapshot.persist","event_version":"v1",'
                    '"aggregate_id":"conv","payload":"' + "x" * 800 + '"}'
                ],
            )
            have = 1
        while have < rows:
            step = min(have, rows - have, 100_000)
            cursor.execute(
                f"INSERT INTO {TABLE} ({columns}) SELECT event_type, service_name, topic,"
                f" CONCAT('conv-', MOD(id * 7919 + {have}, 20000)), payload FROM {TABLE} ORDER BY id LIMIT {step}"
            )
            have += step
        cursor.execute(f"SELECT MAX(id) FROM {TABLE}")
        last = cursor.fetchone()[0]
        cursor.execute(
            f"UPDATE {TABLE} SET status = CASE WHEN id > {last - rows // 200} THEN 'pending'"
            f" WHEN id > {last - rows // 100} THEN 'published' WHEN MOD(id, 1000) = 0 THEN 'dead' ELSE 'consumed' END,"
            " published_at = created_at, consumed_at = created_at"
        )
        cursor.execute(f"ANALYZE TABLE {TABLE}" if connection.vendor == "mysql" else f"ANALYZE {TABLE}")
        cursor.fetchall() if connection.vendor == "mysql" else None


@contextmanager
def recorded() -> Iterator[list[tuple[str, Any]]]:
    """Collect the statements on the table that run inside the block."""
    statements: list[tuple[str, Any]] = []

    def record(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if TABLE in sql:
            statements.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(record):
        yield statements


def explain(name: str, query: Callable[[OutboxRepository], object]) -> None:
    """Run ``query`` and print, for each statement on the table, its time and its plan; the first run only warms up."""
    repository = repository_of("agent")
    with transaction.atomic():
        query(repository)
        transaction.set_rollback(True)
    with transaction.atomic():
        started = time.perf_counter()
        with recorded() as statements:
            query(repository)
        spent_ms = (time.perf_counter() - started) * 1000
        print(f"\n## {name}: {spent_ms:.1f} ms, {len(statements)} statements")
        for sql, params in statements:
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN {sql}", params)
                names = [column[0] for column in cursor.description or ()]
                for row in cursor.fetchall():
                    plan = dict(zip(names, row, strict=True))
                    shown = ("select_type", "table", "type", "key", "key_len", "rows", "Extra", "QUERY PLAN")
                    print("   ", {key: plan[key] for key in shown if key in plan})
        transaction.set_rollback(True)


def main() -> None:
    """Parse, fill and explain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    fill(parser.parse_args().rows)
    route = route_registry().catalog.route("agent")
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM {TABLE} WHERE status = 'published' ORDER BY id LIMIT 500")
        published = [row[0] for row in cursor.fetchall()]
        cursor.execute(f"SELECT id FROM {TABLE} WHERE status = 'dead' ORDER BY id LIMIT 50")
        dead = [row[0] for row in cursor.fetchall()]
    now = datetime.now(UTC)
    first = repository_of("agent").claim(shards=None, limit=500, max_length=10**6)
    pending = [row.id for row in first.rows]
    old = timedelta(seconds=1)
    for name, query in {
        "claim from the oldest": lambda r: r.claim(shards=None, limit=500, max_length=10**6),
        "claim, half of the shards": lambda r: r.claim(shards=range(8), limit=500, max_length=10**6),
        "claim, going on": lambda r: r.claim(shards=None, limit=500, max_length=10**6, after=first.last),
        "mark published": lambda r: r.mark_published(pending, claimed_at=first.claimed_at, redeliver_after=old),
        "redeliver": lambda r: r.redeliver(shards=None, published_before=now, limit=500),
        "published rows as a queue": lambda r: r.published(shards=None, limit=500),
        "lock a batch": lambda r: r.lock(published, max_length=10**6),
        "predecessors of a batch": lambda r: r.blockers(r.lock(published, max_length=10**6)),
        "mark consumed": lambda r: r.mark_consumed(published),
        "put back": lambda r: r.wait(published, until=now),
        "replay": lambda r: r.replay(dead),
        "prune a window": lambda r: r.prune(consumed_before=now, after_id=0, limit=500),
        "count of a status, capped": lambda _: statistics.count_rows(route, "status = %s", ["consumed"]),
        "age of what is due longest": lambda _: statistics.oldest_due_age(route),
    }.items():
        explain(name, query)


if __name__ == "__main__":
    main()
