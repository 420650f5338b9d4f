"""Records of other software on our topics: how they are put there, and those that are hard to read."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.record import default_records

from outbox.wire.envelope import Headers
from tests.chaos.cluster import Cluster
from tests.chaos.faults import injects
from tests.chaos.ledger import Garbage
from tests.chaos.schedule import TimedFault

NO_MESSAGE: Final = "the record's value is not an outbox message"
PARTITIONS: Final = 3

UNREADABLE_KEY: Final = re.compile(rb"unreadable-[0-9.]+-end")
"""The key of a record whose batch cannot be read, wherever it stands in the batch."""

_ANSWERS_S: Final = 20.0
_HEADERS: Final = 300


@dataclass(frozen=True, slots=True)
class ForeignRecord:
    """A record that must be rejected, known by its key."""

    key: bytes
    value: bytes | None
    reason: str = NO_MESSAGE
    """What the reason of its rejection begins with."""
    headers: Headers = ()
    is_certain: bool = True
    """Whether it must be rejected; else it only may be."""


def put(
    cluster: Cluster,
    records: Sequence[ForeignRecord],
    *,
    dice: random.Random,
    service: str = "probe",
    partition: int | None = None,
    **options: Any,
) -> str:
    """Put records on the topic of a service, on one partition or any; return what the broker said, for the log.

    ``options`` are those of the producer.
    """
    note(cluster, records, [False] * len(records))
    with producing(cluster, **options) as producer:
        answers = answers_of(producer, cluster.installation.topic(service), records, dice=dice, partition=partition)
    note(cluster, records, answers)
    return f"{sum(answers)} records, {len(answers) - sum(answers)} more perhaps"


@contextmanager
def producing(cluster: Cluster, **options: Any) -> Iterator[KafkaProducer]:
    """Give a producer of other software that waits for nothing for long."""
    bounds = {"acks": "all", "max_block_ms": 5000, "metrics_enabled": False}
    producer = KafkaProducer(**{"bootstrap_servers": cluster.servers.kafka_address, **bounds, **options})
    try:
        yield producer
    finally:
        producer.close(timeout=5)


def answers_of(
    producer: KafkaProducer,
    topic: str,
    records: Sequence[ForeignRecord],
    *,
    dice: random.Random,
    partition: int | None = None,
) -> list[bool]:
    """Send records as fast as it goes; say of each whether the broker has it for certain within some seconds."""
    futures = [
        producer.send(
            topic,
            key=record.key,
            value=record.value,
            headers=list(record.headers),
            partition=dice.randrange(PARTITIONS) if partition is None else partition,
        )
        for record in records
    ]
    answers = []
    deadline = time.monotonic() + _ANSWERS_S
    for future in futures:
        try:
            future.get(timeout=max(0.01, deadline - time.monotonic()))
            answers.append(True)
        except KafkaError:
            answers.append(False)
    return answers


def note(
    cluster: Cluster, records: Sequence[ForeignRecord], answers: Sequence[bool], *, is_hidden: bool = False
) -> None:
    """Write down what must become of records, by whether the broker has them for certain."""
    cluster.ledger.garbage |= {
        record.key: Garbage(
            record.key,
            record.reason,
            is_acknowledged=answer and record.is_certain and not is_hidden,
            is_hidden=is_hidden,
        )
        for record, answer in zip(records, answers, strict=True)
    }


# --- records that are hard to read -------------------------------------------------------------------------------


class _RawName(str):
    """The name of a header with bytes that are no UTF-8, which other clients can write."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode("latin-1")


@injects("odd-bytes")
def _put_odd_bytes(cluster: Cluster, fault: TimedFault) -> str:
    name = f"odd-{fault.at_s}".encode()
    odd = b"\x00\xff\xfe\xc3\x28"
    records = [
        ForeignRecord(odd + name, b"{}"),
        ForeignRecord(name + b"-value", odd * 10),
        ForeignRecord(name + b"-header", b"{}", headers=(("name", odd),)),
        ForeignRecord(name + b"-name", b"{}", headers=((_RawName("na\xffme"), b"1"),)),
        ForeignRecord(name + b"-many", b"{}", headers=tuple((f"name-{n}", b"x" * 20) for n in range(_HEADERS))),
    ]
    return put(cluster, records, dice=random.Random(fault.dice))


@injects("unreadable-batch")
def _put_unreadable_batch(cluster: Cluster, fault: TimedFault) -> str:
    """Put a batch whose compressed bytes have something behind them: Kafka's own reader passes over that."""
    key = f"unreadable-{fault.at_s}-end".encode()
    reason = "offsets "  # … to … cannot be read
    note(cluster, [ForeignRecord(key, b"", reason)], [False])
    dice = random.Random(fault.dice)
    records = [ForeignRecord(key, b"x" * 300, reason) for _ in range(3)]
    options = {"compression_type": "gzip", "linger_ms": 200}
    return put(cluster, records, dice=dice, partition=dice.randrange(PARTITIONS), **options)


_compress: Final = default_records.gzip_encode


def _spoil(data: Any) -> bytes:
    """Compress a batch; put the key of unreadable records, where they are in it, behind its compressed bytes."""
    found = UNREADABLE_KEY.search(bytes(data))
    return bytes(_compress(data)) + (found.group() if found else b"")


default_records.gzip_encode = _spoil  # for all producers of this process: of other batches it changes nothing
