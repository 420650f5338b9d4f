"""Count what relay and consumer ask of the database: ``python -m benchmarks.speed.counting --events 10000``.

Both run in this process, one after the other, on one connection, so that the server's own counters tell all of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import django

django.setup()

from django.db import connection, transaction  # noqa: E402
from django.dispatch import Signal  # noqa: E402

from benchmarks.processes import ANSWER  # noqa: E402
from benchmarks.speed.sessions import Session, counted  # noqa: E402
from benchmarks.tables import TABLE  # noqa: E402
from benchmarks.writers import CONVERSATIONS, snapshot  # noqa: E402
from outbox import publish_many, signals  # noqa: E402
from outbox.coordination.shutdown import StopFlag  # noqa: E402
from outbox.relay.confirmations import OwnHand  # noqa: E402
from outbox.workers.build import build_consumer, build_relay, open_broker, routes_of, topic_is_drained  # noqa: E402

_MANY = 1_000


def count(work: Callable[[], object], told: Signal, *, events: int, payload: float) -> dict[str, Any]:
    """Return what ``work`` did, by batch; ``told`` is sent after each."""
    batches: list[int] = []

    def note(*, count: int, **_: Any) -> None:
        batches.append(count)

    session = Session()
    told.connect(note)
    before = session.read()
    with counted() as statements:
        work()
    since = session.since(before)
    told.disconnect(note)
    # A claim that found nothing is no batch's: it says that there is none.
    claims = sum("m.next_retry_at" in statement for statement in statements.work)
    idle = max(claims - len(batches), 0)
    return {
        "events": sum(batches),
        "batches": len(batches),
        "statements": (len(statements.work) - idle) / len(batches),
        "idle_claims": idle,
        "upkeep": statements.upkeep,
        "round_trips": since.questions / len(batches),
        "bytes_to_payload": (since.received + since.sent) / events / payload,
    }


def measure(events: int, payload_bytes: int) -> dict[str, Any]:
    """Publish, relay and consume ``events`` events."""
    for first in range(0, events, _MANY):
        numbers = range(first, min(first + _MANY, events))
        with transaction.atomic():
            publish_many(snapshot(f"conv-{number % CONVERSATIONS}", payload_bytes=payload_bytes) for number in numbers)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT AVG(OCTET_LENGTH(payload)) FROM {TABLE}")
        payload = float(cursor.fetchone()[0])
    route = routes_of(["agent"])[0]
    with open_broker() as broker:
        relay = build_relay(route, broker, hand=OwnHand())
        consumer = build_consumer(route, broker)
        return {
            "relay": count(lambda: relay.run(StopFlag(), once=True), signals.relayed, events=events, payload=payload),
            "consumer": count(
                lambda: consumer.run(StopFlag(), is_drained=lambda: topic_is_drained(route, broker)),
                signals.consumed,
                events=events,
                payload=payload,
            ),
        }


def main() -> None:
    """Parse and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--bytes", type=int, default=1_000)
    options = parser.parse_args()
    print(ANSWER + json.dumps(measure(options.events, options.bytes)), flush=True)


if __name__ == "__main__":
    main()
