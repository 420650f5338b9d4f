"""What the servers give to a client that does the least: ``python -m benchmarks.speed.ceilings relay|consumer|kafka``.

No Django, no project code. ``relay`` claims and marks: two statements a batch, each a transaction of its own, nothing
encoded, nothing sent. ``consumer`` locks, upserts, marks and commits rows whose ids it has read beforehand: nothing
is received and nothing decoded, the payload column is stored as it is. ``kafka`` sends records and receives them.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.arithmetic import percentile
from benchmarks.database import connect
from benchmarks.processes import ANSWER
from benchmarks.tables import TABLE

READY: Final = "READY"
REFERENCE_BYTES: Final = 256 * 1024
"""As ``OUTBOX['REFERENCE_BYTES']``: what is longer stays in its row."""
_LOOK_S: Final = 0.01
_CLAIM: Final = (
    "SELECT m.id, m.event_type, m.message_key, CASE WHEN OCTET_LENGTH(m.payload) <= {most} THEN m.payload END,"
    " m.traceparent, m.next_retry_at FROM (SELECT id FROM {table} {hint} WHERE status = 'pending'{shards}"
    " AND next_retry_at <= UTC_TIMESTAMP(6){behind} ORDER BY next_retry_at, id LIMIT {batch}) due"
    " JOIN {table} m ON m.id = due.id"
)
_MARK: Final = (
    "UPDATE {table} FORCE INDEX (PRIMARY) SET status = 'published', updated_at = UTC_TIMESTAMP(6),"
    " published_at = UTC_TIMESTAMP(6), next_retry_at = UTC_TIMESTAMP(6) + INTERVAL 300 SECOND"
    " WHERE id IN ({ids}) AND status = 'pending'"
)
_LOCK: Final = "SELECT id, message_key, status, payload FROM {table} WHERE id IN ({ids}) ORDER BY id FOR UPDATE"
_CONSUME: Final = (
    "UPDATE {table} FORCE INDEX (PRIMARY) SET status = 'consumed', updated_at = UTC_TIMESTAMP(6),"
    " consumed_at = UTC_TIMESTAMP(6) WHERE id IN ({ids}) AND status = 'published'"
)
_UPSERT: Final = (
    "INSERT INTO agent_state_snapshot_records (conversation_id, user_id, phase, snapshot_json, outbox_id, created_at,"
    " updated_at) VALUES {rows} ON DUPLICATE KEY UPDATE user_id = VALUES(user_id), phase = VALUES(phase),"
    " snapshot_json = VALUES(snapshot_json), updated_at = VALUES(updated_at), outbox_id = VALUES(outbox_id)"
)
_UPSERT_ROW: Final = "(%s, 1, 'plan', %s, %s, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))"


def relay(connection: Any, stop: threading.Event, *, shards: Sequence[int] | None, batch: int) -> None:
    """Claim and mark until ``stop``."""
    cursor = connection.cursor()
    of_shards = "" if shards is None else f" AND shard IN ({_ids(shards)})"
    behind = hint = ""
    print(READY, flush=True)
    while not stop.is_set():
        cursor.execute(
            _CLAIM.format(table=TABLE, most=REFERENCE_BYTES, shards=of_shards, batch=batch, behind=behind, hint=hint)
        )
        found = cursor.fetchall()
        if not found:
            behind = hint = ""
            stop.wait(_LOOK_S)
            continue
        ids = sorted(row[0] for row in found)
        cursor.execute(_MARK.format(table=TABLE, ids=_ids(ids)))
        moment, last_id = max((row[5], row[0]) for row in found)
        behind = f" AND ((next_retry_at = '{moment}' AND id > {last_id}) OR next_retry_at > '{moment}')"
        hint = "IGNORE INDEX (PRIMARY)"  # with it in sight MariaDB merges two indexes


def consumer(connection: Any, go: Path, *, shards: Sequence[int] | None, batch: int, each: bool) -> None:
    """Bring every published row to its end once the file ``go`` is there; ``each``: an upsert for every event."""
    cursor = connection.cursor()
    of_shards = "" if shards is None else f" AND shard IN ({_ids(shards)})"
    cursor.execute(f"SELECT id FROM {TABLE} WHERE status = 'published'{of_shards} ORDER BY id")
    ids = [row[0] for row in cursor.fetchall()]
    connection.autocommit(False)
    connection.commit()
    print(READY, flush=True)
    while not go.exists():
        time.sleep(_LOOK_S)
    for first in range(0, len(ids), batch):
        of_batch = _ids(ids[first : first + batch])
        cursor.execute(_LOCK.format(table=TABLE, ids=of_batch))
        rows = cursor.fetchall()
        if each:
            for row_id, key, _, payload in rows:
                cursor.execute(_UPSERT.format(rows=_UPSERT_ROW), (key, payload, row_id))
        else:
            newest = {key: (key, payload, row_id) for row_id, key, _, payload in rows}
            values = [value for _, of_key in sorted(newest.items()) for value in of_key]
            cursor.execute(_UPSERT.format(rows=", ".join([_UPSERT_ROW] * len(newest))), values)
        cursor.execute(_CONSUME.format(table=TABLE, ids=of_batch))
        connection.commit()


def kafka(servers: str, topic: str, *, rate: float, count: int, payload_bytes: int) -> dict[str, float]:
    """Send ``count`` records at ``rate`` a second; return percentiles of the time from sending to receiving, in ms."""
    # The two others are to be small: kafka-python is half of their size.
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # noqa: PLC0415

    producer = KafkaProducer(bootstrap_servers=servers.split(","), linger_ms=0)
    receiver = KafkaConsumer(bootstrap_servers=servers.split(","), fetch_min_bytes=1)
    parts = [TopicPartition(topic, number) for number in sorted(producer.partitions_for(topic))]
    receiver.assign(parts)
    receiver.seek_to_end()
    for part in parts:
        receiver.position(part)
    spent: list[float] = []

    def receive() -> None:
        deadline = time.monotonic() + count / rate + 30
        while len(spent) < count and time.monotonic() < deadline:
            for records in receiver.poll(timeout_ms=100).values():
                now = time.time()
                spent.extend((now - float(record.value[:20])) * 1000 for record in records)

    thread = threading.Thread(target=receive)
    thread.start()
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(began + number / rate - time.monotonic(), 0))
        value = f"{time.time():020.6f}".encode().ljust(payload_bytes, b"x")
        producer.send(topic, value=value, key=str(number).encode())
    thread.join()
    producer.close()
    receiver.close()
    return {"p50": percentile(spent, 0.5), "p99": percentile(spent, 0.99), "count": len(spent)}


def _ids(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("relay", "consumer", "kafka"))
    parser.add_argument("--url", help="of the database")
    parser.add_argument("--shards", help="such as 0,2,4 (all)")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--go", type=Path)
    parser.add_argument("--servers")
    parser.add_argument("--topic")
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--bytes", type=int, default=1_000)
    options = parser.parse_args()
    if options.kind == "kafka":
        spent = kafka(
            options.servers, options.topic, rate=options.rate, count=options.count, payload_bytes=options.bytes
        )
        print(ANSWER + json.dumps(spent), flush=True)
        return
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    connection = connect(options.url)
    connection.cursor().execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    shards = [int(shard) for shard in options.shards.split(",")] if options.shards else None
    if options.kind == "relay":
        relay(connection, stop, shards=shards, batch=options.batch)
    else:
        consumer(connection, options.go, shards=shards, batch=options.batch, each=options.each)
    stop.wait()  # a signal that comes while Python ends would look like a failure


if __name__ == "__main__":
    main()
