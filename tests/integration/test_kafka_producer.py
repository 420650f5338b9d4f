"""The Kafka producer where its client fails: for good, for one topic, or with records still in its memory."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import structs

from outbox.brokers.kafka import KafkaBroker
from outbox.exceptions import BrokerUnavailableError
from tests.contract.brokers import ANSWER_TIMEOUT, KafkaHarness, ids, ids_by_key, receive_exactly, records
from tests.services import require
from tests.waiting import wait_until


@pytest.fixture
def hasty() -> Iterator[KafkaBroker]:
    """A broker that waits for nothing for long."""
    broker = KafkaBroker(bootstrap_servers=require("kafka"), request_timeout_seconds=1.0)
    yield broker
    broker.close()


def test_lost_sequence_costs_a_client_and_no_record(harness: KafkaHarness) -> None:
    """An idempotent client whose numbering the broker does not accept can send nothing more."""
    route = harness.ready_route(partitions=1)
    producer = harness.broker.producer(client_id="contract")
    assert len(producer.send(records(route, 5)).report(ANSWER_TIMEOUT).acknowledged) == 5
    first_client = producer._link.client
    sequences = first_client._transaction_manager._sequence_numbers
    sequences.update(dict.fromkeys(sequences, 10_000))

    later = [producer.send(records(route, 5, first_id=6)), producer.send(records(route, 5, first_id=11))]
    reports = [send.report(ANSWER_TIMEOUT) for send in later]

    assert [report.acknowledged for report in reports] == [(6, 7, 8, 9, 10), (11, 12, 13, 14, 15)]
    assert len(producer.send(records(route, 5, first_id=16)).report(ANSWER_TIMEOUT).acknowledged) == 5
    assert producer._link.client is not first_client
    producer.close()
    subscription = harness.broker.subscribe(route, client_id="contract")
    received = receive_exactly(subscription, 20)
    subscription.close()
    assert sorted(set(ids(received))) == list(range(1, 21))
    assert all(numbers == sorted(numbers) for numbers in ids_by_key(received).values())


def test_time_of_a_record_is_what_the_caller_says(harness: KafkaHarness) -> None:
    """Kafka refuses what comes from more than an hour ahead, so the clock of a relay's machine must not count."""
    route = harness.ready_route()
    producer = harness.broker.producer(client_id="contract")
    now = datetime.now(UTC)
    from_now, from_the_future = (
        [structs.replace(record, sent_at=sent_at) for record in records(route, 3, first_id=first_id)]
        for sent_at, first_id in ((now, 1), (now + timedelta(hours=2), 4))
    )

    assert producer.send(from_now).report(ANSWER_TIMEOUT).acknowledged == (1, 2, 3)
    assert producer.send(from_the_future).report(timedelta(seconds=3)).unanswered == (4, 5, 6)
    producer.close()


def test_client_that_failed_for_good_ends_its_thread(harness: KafkaHarness) -> None:
    route = harness.small_route()
    client_id = f"contract-{uuid.uuid4().hex}"
    producer = harness.broker.producer(client_id=client_id)

    for first_id in range(1, 40, 10):
        batch = records(route, 10, first_id=first_id)
        batch[4] = structs.replace(batch[4], value=b"x" * 50_000)
        report = producer.send(batch).report(ANSWER_TIMEOUT)
        assert [refusal.outbox_id for refusal in report.refused] == [first_id + 4]
        assert len(report.acknowledged) == 9

    assert producer.send(records(route, 1)).report(ANSWER_TIMEOUT).acknowledged == (1,)
    wait_until(lambda: _threads_of(client_id) == 1, timeout=10, message="one client is left")
    producer.close()
    wait_until(lambda: _threads_of(client_id) == 0, timeout=10, message="no client is left")


def test_missing_topic_is_an_outage_of_that_topic_only(harness: KafkaHarness, hasty: KafkaBroker) -> None:
    present, missing = harness.ready_route(), harness.route()
    producer = hasty.producer(client_id="contract")
    with pytest.raises(BrokerUnavailableError, match=missing.topic):
        producer.send(records(missing, 3))

    report = producer.send([*records(present, 3), *records(missing, 3, first_id=4)]).report(ANSWER_TIMEOUT)

    assert (report.acknowledged, report.unanswered) == ((1, 2, 3), (4, 5, 6))
    assert missing.topic in report.outage
    [state] = hasty.topics([missing])
    assert not state.exists, "sending must not create a topic"
    # The brokers of the tests would not create it anyway; these clients do not ask for it either.
    assert producer._link.client._metadata.config["allow_auto_create_topics"] is False

    harness.broker.create_topics([missing])
    assert producer.send(records(missing, 3, first_id=4)).report(ANSWER_TIMEOUT).acknowledged == (4, 5, 6)
    producer.close()


def test_report_that_runs_out_of_time_leaves_nothing_behind(harness: KafkaHarness) -> None:
    """What a caller was told is unanswered is not kept in a client's memory to be sent later."""
    route = harness.ready_route()
    client_id = f"contract-{uuid.uuid4().hex}"
    producer = harness.broker.producer(client_id=client_id)
    first_client = producer._link.client

    report = producer.send(records(route, 10)).report(timedelta(0))

    unanswered = set(report.unanswered)
    assert unanswered | set(report.acknowledged) == set(range(1, 11))
    if unanswered:
        assert "no answer" in report.outage
        assert producer._link is None
        wait_until(lambda: not first_client._sender.is_alive(), timeout=10)
        assert not first_client._accumulator.has_incomplete
    assert len(producer.send(records(route, 10)).report(ANSWER_TIMEOUT).acknowledged) == 10
    producer.close()


def _threads_of(client_id: str) -> int:
    return sum(thread.name.startswith(client_id) for thread in threading.enumerate())
