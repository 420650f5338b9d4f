"""Handle good batches and batches with one bad event in turn: ``python -m benchmarks.speed.batches --rounds 10``.

Records are made from the rows, as the relay would; there is no broker, so that nothing but the handling is timed.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from typing import Any

import django

django.setup()

from django.db import connection, transaction  # noqa: E402

from agent_events.agent import handlers as agent_handlers  # noqa: E402
from agent_events.agent.events import AgentStateSnapshot  # noqa: E402
from benchmarks.processes import ANSWER  # noqa: E402
from benchmarks.speed.sessions import Session  # noqa: E402
from benchmarks.speed.upserts import EVENT_TYPE  # noqa: E402
from benchmarks.tables import TABLE  # noqa: E402
from benchmarks.writers import snapshot  # noqa: E402
from outbox import Delivery, publish_many  # noqa: E402
from outbox.brokers.base import IncomingRecord  # noqa: E402
from outbox.consumer.loop import Consumer  # noqa: E402
from outbox.declarations.handlers import handlers  # noqa: E402
from outbox.wire.envelope import decode_envelope, encode_message  # noqa: E402
from outbox.workers.build import build_consumer, open_broker, routes_of  # noqa: E402

_BATCH = 500
_TOPIC = "batches"


def nothing(deliveries: list[Delivery[AgentStateSnapshot]]) -> None:
    """Do nothing: what is timed is the outbox's own work."""


def bad_one(function: Callable[[Any], None], bad_id: int) -> Callable[[Any], None]:
    """Return ``function``, but it fails where the event ``bad_id`` is among its deliveries."""

    def handle(deliveries: list[Delivery[AgentStateSnapshot]]) -> None:
        function(deliveries)
        if any(delivery.outbox_id == bad_id for delivery in deliveries):
            raise ValueError("the bad one")

    return handle


def batch(payload_bytes: int) -> list[IncomingRecord]:
    """Publish a batch of events of different keys; return their records."""
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE TABLE {TABLE}")
        with transaction.atomic():
            publish_many(snapshot(f"conv-{number}", payload_bytes=payload_bytes) for number in range(_BATCH))
        cursor.execute(f"SELECT id, payload FROM {TABLE} ORDER BY id")
        return [
            IncomingRecord(_TOPIC, 0, number, None, _value(row_id, payload))
            for number, (row_id, payload) in enumerate(cursor.fetchall())
        ]


def _value(row_id: int, payload: str) -> bytes:
    envelope = decode_envelope(payload, outbox_id=row_id, event_type=EVENT_TYPE)
    return encode_message(envelope, outbox_id=row_id, service="agent")


def timed(consumer: Consumer, records: list[IncomingRecord]) -> tuple[float, int]:
    """Return how long ``records`` take, in ms, and the round trips to the database."""
    session = Session()
    before, began = session.read(), time.perf_counter()
    consumer.handle(records)
    spent_ms = (time.perf_counter() - began) * 1000
    return spent_ms, session.since(before).questions


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--bytes", type=int, default=1_000)
    options = parser.parse_args()
    rand = random.Random(1)
    answer: dict[str, dict[str, list[float]]] = {}
    with open_broker() as broker:
        consumer = build_consumer(routes_of(["agent"])[0], broker)
        for name, function in (("nothing", nothing), ("one upsert", agent_handlers.keep_newest_snapshot)):
            of = answer[name] = {"good_ms": [], "bad_ms": [], "good_round_trips": [], "bad_round_trips": []}
            for number in range(-1, options.rounds):  # the first one loads what the others find loaded
                for kind in ("good", "bad"):
                    records = batch(options.bytes)
                    bad_id = 1 + rand.randrange(_BATCH) if kind == "bad" else 0
                    handlers.remove(EVENT_TYPE)
                    handlers.add(EVENT_TYPE, bad_one(function, bad_id), batch=True)
                    spent_ms, round_trips = timed(consumer, records)
                    if number >= 0:
                        of[f"{kind}_ms"].append(spent_ms)
                        of[f"{kind}_round_trips"].append(round_trips)
    print(ANSWER + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
