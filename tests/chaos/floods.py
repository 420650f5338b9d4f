"""Foreign records in floods: hundreds of small ones, and ones as large as the broker takes or as compression allows."""

from __future__ import annotations

import random
from typing import Final

from kafka import KafkaProducer
from kafka.errors import KafkaError

from tests.chaos.cluster import Cluster
from tests.chaos.faults import injects
from tests.chaos.ledger import Garbage
from tests.chaos.schedule import TimedFault
from tests.chaos.writers import TOPIC_LIMIT

_SMALL: Final = 400
_LARGE: Final = 10
_INFLATED: Final = 20
_MEBIBYTE: Final = 1024 * 1024
_ANSWERS_S: Final = 20.0


@injects("flood-small", "flood-large")
def _flood(cluster: Cluster, fault: TimedFault) -> str:
    dice = random.Random(fault.dice)
    if fault.name == "flood-small":
        values = [b'{"n": %d}' % number for number in range(_SMALL)]
    else:
        values = [dice.randbytes(TOPIC_LIMIT - 2_000) for _ in range(_LARGE)]
        with cluster.database() as database:  # together they are more than one statement may be
            inflated_bytes = int(database.value("SELECT @@max_allowed_packet")) // _INFLATED + _MEBIBYTE // 8
        values += [bytes(inflated_bytes)] * _INFLATED
    keys = [f"{fault.name}-{fault.at_s}-{number}".encode() for number in range(len(values))]
    reason = "the record's value is not an outbox message"
    cluster.ledger.garbage |= {key: Garbage(key, reason, is_acknowledged=False) for key in keys}
    answers = _send(cluster, list(zip(keys, values, strict=True)), partition=dice.randrange(3))
    for key, answer in zip(keys, answers, strict=True):
        cluster.ledger.garbage[key] = Garbage(key, reason, is_acknowledged=answer)
    return f"{sum(answers)} records, {len(answers) - sum(answers)} more perhaps; {sum(map(len, values)):,} bytes"


def _send(cluster: Cluster, records: list[tuple[bytes, bytes]], *, partition: int) -> list[bool]:
    """Send records to one partition, as fast as it goes; say of each whether the broker has it for certain."""
    producer = KafkaProducer(
        bootstrap_servers=cluster.servers.kafka_address,
        acks="all",
        max_block_ms=5000,
        max_request_size=64 * _MEBIBYTE,
        compression_type="gzip",
        metrics_enabled=False,
    )
    try:
        futures = [
            producer.send(cluster.installation.topic(), key=key, value=value, partition=partition)
            for key, value in records
        ]
        answers = []
        for future in futures:
            try:
                future.get(timeout=_ANSWERS_S)
                answers.append(True)
            except KafkaError:
                answers.append(False)
    finally:
        producer.close(timeout=5)
    return answers
