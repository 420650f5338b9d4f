"""Publish, and insert the same by the bare driver, in turn: ``python -m benchmarks.speed.publishing --rounds 10``.

The time of ``publish`` is that of the processor in this thread: building and checking the event is the caller's matter
and left out, waiting for the database is not counted, what Django and the driver do is.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import django

django.setup()

from django.db import connection, transaction  # noqa: E402

from agent_events.agent.events import AgentStateSnapshot  # noqa: E402
from benchmarks.database import connect  # noqa: E402
from benchmarks.processes import ANSWER  # noqa: E402
from benchmarks.speed.sessions import Session, counted  # noqa: E402
from benchmarks.tables import TABLE  # noqa: E402
from benchmarks.writers import CONVERSATIONS, snapshot  # noqa: E402
from outbox import publish, publish_many  # noqa: E402

_SINGLES = 200
_MANY = 1_000
_COLUMNS = "event_type, service_name, topic, message_key, payload, max_retry, traceparent, event_id"
_ROW = "(%s, %s, %s, %s, %s, %s, %s, %s)"
_INSERT = f"INSERT INTO {TABLE} ({_COLUMNS}) VALUES "


def measure(rounds: int, payload_bytes: int) -> dict[str, Any]:
    """Return what was measured, by name, a value a round."""
    events = [snapshot(f"conv-{number % CONVERSATIONS}", payload_bytes=payload_bytes) for number in range(_MANY)]
    raw = connect(os.environ["DATABASE_URL"])
    raw.autocommit(False)
    rows = _rows(events)
    _empty()
    answer: dict[str, list[float]] = {}
    for number in range(-1, rounds):  # the first one loads what the others find loaded
        found = {
            "raw_cpu_us": _cpu_us(lambda: _insert_singly(raw, rows[:_SINGLES])),
            "publish_cpu_us": _cpu_us(lambda: _publish_singly(events[:_SINGLES])),
            "raw_alone_s": _seconds(lambda: _insert_alone(raw, rows[:_SINGLES])),
            "publish_alone_s": _seconds(lambda: _publish_alone(events[:_SINGLES])),
            "raw_many_s": _seconds(lambda: _insert_many(raw, rows)),
            "publish_many_s": _seconds(lambda: _publish_many(events)),
        }
        if number >= 0:
            for name, value in found.items():
                answer.setdefault(name, []).append(value)
        if number % 10 == 9:
            _empty()
    raw.close()
    return answer | _counts(events)


def _counts(events: Sequence[AgentStateSnapshot]) -> dict[str, Any]:
    _empty()
    session = Session()
    with transaction.atomic(), counted() as statements:
        before = session.read()
        for event in events[:_SINGLES]:
            publish(event)
        since = session.since(before)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT AVG(OCTET_LENGTH(payload)) FROM {TABLE}")
        payload = float(cursor.fetchone()[0])
    own = [statement for statement in statements.work if TABLE in statement]
    with transaction.atomic(), counted() as of_many:
        publish_many(events)
    return {
        "statements": len(own) / _SINGLES,
        "round_trips": since.questions / _SINGLES,
        "bytes_to_payload": (since.received + since.sent) / _SINGLES / payload,
        "statements_of_many": len(of_many.work),
    }


def _publish_singly(events: Sequence[AgentStateSnapshot]) -> float:
    with transaction.atomic():
        connection.ensure_connection()
        began = time.thread_time()
        for event in events:
            publish(event)
        return time.thread_time() - began


def _insert_singly(raw: Any, rows: Sequence[Sequence[Any]]) -> float:
    with raw.cursor() as cursor:
        began = time.thread_time()
        for row in rows:
            cursor.execute(_INSERT + _ROW, row)
        spent = time.thread_time() - began
    raw.commit()
    return spent


def _publish_alone(events: Sequence[AgentStateSnapshot]) -> None:
    for event in events:
        with transaction.atomic():
            publish(event)


def _insert_alone(raw: Any, rows: Sequence[Sequence[Any]]) -> None:
    with raw.cursor() as cursor:
        for row in rows:
            cursor.execute(_INSERT + _ROW, row)
            raw.commit()


def _publish_many(events: Sequence[AgentStateSnapshot]) -> None:
    with transaction.atomic():
        publish_many(events)


def _insert_many(raw: Any, rows: Sequence[Sequence[Any]]) -> None:
    with raw.cursor() as cursor:
        cursor.execute(_INSERT + ", ".join([_ROW] * len(rows)), [value for row in rows for value in row])
    raw.commit()


def _rows(events: Sequence[AgentStateSnapshot]) -> list[tuple[Any, ...]]:
    """Return the rows as ``publish_many`` writes them, taken out of the table again."""
    publish_many(events)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {_COLUMNS} FROM {TABLE} ORDER BY id")
        return list(cursor.fetchall())


def _empty() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE TABLE {TABLE}")


def _cpu_us(work: Callable[[], float]) -> float:
    return work() / _SINGLES * 1e6


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--bytes", type=int, default=1_000)
    options = parser.parse_args()
    print(ANSWER + json.dumps(measure(options.rounds, options.bytes)), flush=True)


if __name__ == "__main__":
    main()
