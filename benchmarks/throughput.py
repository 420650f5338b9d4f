"""Measure publish, relay and consume, and the time from commit to consumed.

    DATABASE_URL=mysql://… KAFKA_BOOTSTRAP_SERVERS=… python -m benchmarks.throughput [--events 100000]

Empties ``agent_outbox_messages`` and the snapshots of that database, and uses a topic made for the run. Relay and
consumer run as real processes for the latency, and in this process, one after the other, for the throughput, so that
each figure is of one of them. docs/performance.md has the figures and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

RUN = uuid.uuid4().hex[:8]
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "smartflow.settings")
os.environ.setdefault("DEBUG", "true")
os.environ["OUTBOX"] = json.dumps(
    {"SERVICES": {"agent": {"TOPIC": f"bench.{RUN}.agent", "GROUP": f"bench-{RUN}-agent"}}}
    | json.loads(os.environ.get("OUTBOX", "{}"))
)
os.environ.setdefault("LOG_LEVEL", "WARNING")

import django  # noqa: E402

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connection, transaction  # noqa: E402

from agent_events.agent.events import AgentStateSnapshot  # noqa: E402
from outbox import publish, publish_many  # noqa: E402
from outbox.shutdown import StopFlag  # noqa: E402
from outbox.workers import build_consumer, build_relay, open_broker, routes_of, topic_is_drained  # noqa: E402

CONVERSATIONS = 5_000
BULK = 1_000
BODY = json.dumps({"runtime_state": {"common_state": {"phase": "plan"}}, "notes": "x" * 850})


def snapshot(number: int) -> AgentStateSnapshot:
    """Return a snapshot whose row is about 1 kB."""
    return AgentStateSnapshot(
        conversation_id=f"conv-{number % CONVERSATIONS}", user_id=1, phase="plan", snapshot_json=BODY
    )


def empty() -> None:
    """Start from empty tables."""
    with connection.cursor() as cursor:
        for table in ("agent_outbox_messages", "agent_state_snapshot_records"):
            cursor.execute(f"DELETE FROM {table}" if connection.vendor == "sqlite" else f"TRUNCATE TABLE {table}")


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the statements of this thread's connection, transaction control left out."""
    count = [0]

    def count_one(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        count[0] += 1
        return execute(sql, params, many, context)

    with connection.execute_wrapper(count_one):
        yield count


def timed(name: str, events: int, work: Callable[[], object], *, batches: int | None = None) -> None:
    """Run ``work`` and print its rate, and its statements a batch."""
    with counted() as statements:
        started = time.perf_counter()
        work()
        spent = time.perf_counter() - started
    per_batch = f", {statements[0] / batches:.2f} statements a batch of {events // batches}" if batches else ""
    print(f"{name}: {events / spent:,.0f} events/s ({events:,} in {spent:.2f} s{per_batch})", flush=True)


def publish_single(events: int) -> None:
    """Publish each event in a transaction of its own."""
    for number in range(events):
        with transaction.atomic():
            publish(snapshot(number))


def publish_bulk(events: int) -> None:
    """Publish in transactions of ``BULK`` events."""
    for first in range(0, events, BULK):
        with transaction.atomic():
            publish_many(snapshot(number) for number in range(first, min(first + BULK, events)))


def throughput(events: int) -> None:
    """Measure each step by itself."""
    empty()
    route = routes_of(["agent"])[0]
    singles = min(events, 10_000)
    timed("publish, one a transaction, 1 thread", singles, lambda: publish_single(singles))
    empty()
    timed(f"publish_many, {BULK} a transaction", events, lambda: publish_bulk(events))
    with open_broker() as broker:
        broker.create_topics([route])
        relay = build_relay(route, broker)
        timed("relay", events, lambda: relay.run(StopFlag(), once=True), batches=-(-events // 500))
        consumer = build_consumer(route, broker)
        timed(
            "consume",
            events,
            lambda: consumer.run(StopFlag(), is_drained=lambda: topic_is_drained(route, broker)),
            batches=-(-events // 500),
        )
    with connection.cursor() as cursor:
        cursor.execute("SELECT status, COUNT(*) FROM agent_outbox_messages GROUP BY status")
        print("rows:", dict(cursor.fetchall()))


def latency(rate: int, seconds: int) -> None:
    """Publish ``rate`` events a second while relay and consumer run; print the time from commit to consumed."""
    empty()
    route = routes_of(["agent"])[0]
    with open_broker() as broker:
        broker.create_topics([route])
    workers = [
        subprocess.Popen([sys.executable, "manage.py", command, "agent"]) for command in ("run_relay", "consume")
    ]
    try:
        publish(snapshot(0))
        _wait_until_consumed(1)
        committed: dict[int, datetime] = {}
        started = time.perf_counter()
        for number in range(rate * seconds):
            due = started + number / rate
            threading.Event().wait(max(0.0, due - time.perf_counter()))
            with transaction.atomic(), connection.cursor() as cursor:
                publish(snapshot(number))
                cursor.execute("SELECT MAX(id) FROM agent_outbox_messages")
                row_id = cursor.fetchone()[0]
            committed[row_id] = datetime.now(UTC)
        _wait_until_consumed(rate * seconds + 1)
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        for worker in workers:
            worker.wait(timeout=30)
    from agent_events.agent.models import AgentOutboxMessage  # noqa: PLC0415

    spent_ms = sorted(
        (consumed_at - committed[row_id]).total_seconds() * 1000
        for row_id, consumed_at in AgentOutboxMessage.objects.filter(id__in=committed).values_list("id", "consumed_at")
    )
    cuts = statistics.quantiles(spent_ms, n=100)
    print(
        f"commit to consumed at {rate} events/s over {seconds} s ({len(spent_ms):,} events): "
        f"p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms, max {spent_ms[-1]:.0f} ms"
    )


def _wait_until_consumed(count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM agent_outbox_messages WHERE status = 'consumed'")
            if cursor.fetchone()[0] >= count:
                return
        threading.Event().wait(0.1)
    raise SystemExit("not consumed within 120 s")


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rate", type=int, default=200, help="events a second for the latency")
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    call_command("migrate", verbosity=0)
    throughput(options.events)
    latency(options.rate, options.seconds)


if __name__ == "__main__":
    main()
