"""Transactions of other software on our topics: each leaves a marker in the log, which is no record and has an offset.

Behind a marker the position of a group is not the last record's offset and one, which is where LAG used to stop.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from kafka import KafkaProducer
from kafka.errors import KafkaError

from tests.chaos.cluster import READ_COMMITTED, SERVICES, Cluster
from tests.chaos.errors import MissedError
from tests.chaos.faults import injects
from tests.chaos.foreign_records import PARTITIONS, ForeignRecord, answers_of, note, producing
from tests.chaos.schedule import TimedFault

_ENDS_S: Final = 20.0
_MOST_RECORDS: Final = 4


@injects("transactions")
def _write_transactions(cluster: Cluster, fault: TimedFault) -> str:
    """Write one transaction that is committed, one that is aborted, and one that is either, to one topic."""
    dice = random.Random(fault.dice)
    service = dice.choice(SERVICES)
    name = f"transaction-{fault.at_s}"
    with _transactional(cluster, name) as producer:
        told = [
            _transact(
                cluster,
                producer,
                [ForeignRecord(f"{name}-{number}-{n}".encode(), b"x") for n in range(dice.randint(1, _MOST_RECORDS))],
                service=service,
                dice=dice,
                commit=commit,
            )
            for number, commit in enumerate((True, False, dice.random() < 0.5))
        ]
    return f"topic of {service}: {', '.join(told)}"


def end_topics(cluster: Cluster) -> None:
    """Have every partition end with a marker: of a committed transaction, of an aborted one on the last partition."""
    dice = random.Random(0)
    with _transactional(cluster, "transaction-last", wait_s=60) as producer:
        for service in SERVICES:
            for partition in range(PARTITIONS):
                record = ForeignRecord(f"transaction-last-{service}-{partition}".encode(), b"x")
                is_last = partition == PARTITIONS - 1
                _transact(
                    cluster, producer, [record], service=service, dice=dice, commit=not is_last, partition=partition
                )


@contextmanager
def _transactional(cluster: Cluster, name: str, *, wait_s: int = 10) -> Iterator[KafkaProducer]:
    """Give a producer that writes in transactions, and waits so long for a Kafka that has just come back.

    :raises MissedError: Kafka is unavailable.
    """
    with producing(
        cluster, transactional_id=name, transaction_timeout_ms=10_000, max_block_ms=1000 * wait_s
    ) as producer:
        try:
            producer.init_transactions()
        except KafkaError as error:
            raise MissedError(f"no transaction could be begun: {error}") from error
        yield producer


def _transact(
    cluster: Cluster,
    producer: KafkaProducer,
    records: list[ForeignRecord],
    *,
    service: str,
    dice: random.Random,
    commit: bool,
    partition: int | None = None,
) -> str:
    """Write records in one transaction; return what became of it."""
    is_hidden = not commit and cluster.isolation_level == READ_COMMITTED
    note(cluster, records, [False] * len(records), is_hidden=is_hidden)
    topic = cluster.installation.topic(service)
    producer.begin_transaction()
    answers = answers_of(producer, topic, records, dice=dice, partition=partition)
    has_ended = _ends(producer.commit_transaction if commit else producer.abort_transaction)
    if not has_ended and cluster.isolation_level == READ_COMMITTED:
        answers = [False] * len(records)  # whether it was committed nobody knows
    note(cluster, records, answers, is_hidden=is_hidden)
    if not has_ended:
        raise MissedError(f"whether transaction {records[0].key.decode()} has ended is unknown")
    return f"{len(records)} records {'committed' if commit else 'aborted'}"


def _ends(end: Callable[[], None]) -> bool:
    """End a transaction; the client waits for that without a bound. Say whether it ended in time."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            end()
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody knows what became of the transaction
            failed.append(error)

    thread = threading.Thread(target=run, name="transaction-end", daemon=True)
    thread.start()
    thread.join(_ENDS_S)
    return not thread.is_alive() and not failed
