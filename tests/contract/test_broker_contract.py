"""One suite for every broker backend: what ``outbox.brokers.base`` promises.

Its part about several members is ``test_broker_members.py``; ``test_table_broker.py`` runs both on every database.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from msgspec import structs

from outbox.brokers.base import OutgoingRecord
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import BrokerError, LostSubscriptionError
from tests.contract.brokers import (
    ANSWER_TIMEOUT,
    RECEIVE_TIMEOUT,
    SMALL_RECORD_BYTES,
    BrokerHarness,
    ids,
    ids_by_key,
    outbox_id,
    publish,
    receive_exactly,
    records,
)

NOW = timedelta(0)


# --- sending ---------------------------------------------------------------------------------------------------------


def test_every_record_is_acknowledged(harness: BrokerHarness) -> None:
    route = harness.ready_route()
    producer = harness.broker.producer(client_id="contract")
    batch = records(route, 200)

    report = producer.send(batch).report(ANSWER_TIMEOUT)

    assert report.acknowledged == tuple(record.outbox_id for record in batch)
    assert (report.refused, report.unanswered, report.outage) == ((), (), "")
    producer.close()


def test_empty_batch_is_answered(harness: BrokerHarness) -> None:
    producer = harness.broker.producer(client_id="contract")

    assert producer.send([]).report(ANSWER_TIMEOUT).acknowledged == ()
    producer.close()


def test_closed_producer_says_so(harness: BrokerHarness) -> None:
    route = harness.ready_route()
    producer = harness.broker.producer(client_id="contract")
    producer.close()

    with pytest.raises(BrokerError):
        producer.send(records(route, 1))


def test_batches_in_flight_keep_order_of_key(harness: BrokerHarness) -> None:
    route = harness.ready_route()
    producer = harness.broker.producer(client_id="contract")
    batches = [records(route, 100, keys=7, first_id=1 + 100 * number) for number in range(10)]

    pending = [producer.send(batch) for batch in batches]
    for batch, send in zip(batches, pending, strict=True):
        assert len(send.report(ANSWER_TIMEOUT).acknowledged) == len(batch)
    producer.close()

    subscription = harness.broker.subscribe(route, client_id="contract")
    received = receive_exactly(subscription, 1000, commit=True)
    subscription.close()
    assert sorted(ids(received)) == list(range(1, 1001))
    assert all(numbers == sorted(numbers) for numbers in ids_by_key(received).values())


def test_refused_record_does_not_harm_its_neighbours(harness: BrokerHarness) -> None:
    harness.need("refusal")
    route = harness.small_route()
    producer = harness.broker.producer(client_id="contract")
    batch = records(route, 60, keys=4)
    guilty = {batch[20].outbox_id, batch[41].outbox_id}
    batch = [_too_large(record) if record.outbox_id in guilty else record for record in batch]

    report = producer.send(batch).report(ANSWER_TIMEOUT)

    innocent = [record.outbox_id for record in batch if record.outbox_id not in guilty]
    assert {refusal.outbox_id for refusal in report.refused} == guilty
    assert all(refusal.reason for refusal in report.refused)
    assert list(report.acknowledged) == innocent
    assert report.unanswered == ()
    assert _delivered_in_order(harness, route) >= set(innocent)
    producer.close()


def test_refused_record_does_not_harm_other_batches(harness: BrokerHarness) -> None:
    harness.need("refusal")
    route, other = harness.small_route(), harness.ready_route()
    producer = harness.broker.producer(client_id="contract")
    first = [_too_large(record) if record.outbox_id == 3 else record for record in records(route, 20)]
    batches = [first, records(other, 20), records(route, 20, first_id=21)]

    reports = [send.report(ANSWER_TIMEOUT) for send in [producer.send(batch) for batch in batches]]

    assert [refusal.outbox_id for report in reports for refusal in report.refused] == [3]
    assert [len(report.acknowledged) for report in reports] == [19, 20, 20]
    assert all(report.unanswered == () for report in reports)
    assert _delivered_in_order(harness, route) == set(range(1, 41)) - {3}
    assert producer.send(records(route, 5, first_id=41)).report(ANSWER_TIMEOUT).acknowledged == (41, 42, 43, 44, 45)
    producer.close()


def test_record_that_no_client_takes_is_refused_alone(harness: BrokerHarness) -> None:
    harness.need("refusal")
    route = harness.ready_route()
    producer = harness.broker.producer(client_id="contract")
    batch = records(route, 3)
    batch[1] = structs.replace(batch[1], value=b"x" * 1_500_000)

    report = producer.send(batch).report(ANSWER_TIMEOUT)

    assert report.acknowledged == (1, 3)
    assert [refusal.outbox_id for refusal in report.refused] == [2]
    producer.close()


# --- what a record carries -------------------------------------------------------------------------------------------


def test_topic_key_and_id_come_through(harness: BrokerHarness) -> None:
    route = harness.ready_route()
    publish(harness, [structs.replace(records(route, 1, first_id=7)[0], key="conversation-ü")])

    subscription = harness.broker.subscribe(route, client_id="contract")
    [received] = receive_exactly(subscription, 1)
    subscription.close()

    assert (received.topic, received.key, outbox_id(received)) == (route.topic, "conversation-ü".encode(), 7)


def test_value_and_headers_come_through(harness: BrokerHarness) -> None:
    harness.need("values")
    route = harness.ready_route()
    headers = (("event_id", b"7"), ("traceparent", b"00-\xff"), ("event_id", b""))
    sent = OutgoingRecord(7, route.topic, "conversation", b'{"outbox_id": 7}\x00', headers)
    publish(harness, [sent])

    subscription = harness.broker.subscribe(route, client_id="contract")
    [received] = receive_exactly(subscription, 1)
    subscription.close()

    assert (received.value, received.headers) == (sent.value, headers)


def test_foreign_bytes_come_through(harness: BrokerHarness) -> None:
    harness.need("foreign")
    route = harness.ready_route()
    harness.put(route, value=None, key=b"tombstone")
    harness.put(route, value=b"\xff\xfe garbage", key=None)
    harness.put(route, value=b"", key=b"")
    harness.put(route, value=b"{}", key=b"\x80", headers=(("h", b"\x00"),))

    subscription = harness.broker.subscribe(route, client_id="contract")
    received = receive_exactly(subscription, 4)
    subscription.commit(received)
    subscription.close()

    assert {(record.key, record.value) for record in received} == {
        (b"tombstone", None),
        (None, b"\xff\xfe garbage"),
        (b"", b""),
        (b"\x80", b"{}"),
    }


# --- receiving and committing ----------------------------------------------------------------------------------------


def test_receive_returns_nothing_after_its_timeout(harness: BrokerHarness) -> None:
    route = harness.ready_route()
    subscription = harness.broker.subscribe(route, client_id="contract")

    assert subscription.receive(max_records=10, timeout=RECEIVE_TIMEOUT) == []
    assert subscription.receive(max_records=10, timeout=NOW) == []
    subscription.close()


def test_receive_keeps_to_its_limit(harness: BrokerHarness) -> None:
    route = harness.ready_route(partitions=1)
    publish(harness, records(route, 25))
    subscription = harness.broker.subscribe(route, client_id="contract")

    assert ids(receive_exactly(subscription, 10, commit=True)) == list(range(1, 11))
    assert ids(receive_exactly(subscription, 15, commit=True)) == list(range(11, 26))
    subscription.close()


def test_receive_goes_on_behind_what_is_in_hand(harness: BrokerHarness) -> None:
    harness.need("offsets")
    route = harness.ready_route(partitions=1)
    publish(harness, records(route, 25))
    subscription = harness.broker.subscribe(route, client_id="contract")

    assert ids(receive_exactly(subscription, 10)) == list(range(1, 11))
    assert ids(receive_exactly(subscription, 15)) == list(range(11, 26))
    subscription.close()


def test_uncommitted_records_come_again(harness: BrokerHarness) -> None:
    harness.need("redelivery")
    route = harness.ready_route()
    publish(harness, records(route, 30))
    first = harness.broker.subscribe(route, client_id="contract-1")
    receive_exactly(first, 30)
    first.close()

    second = harness.broker.subscribe(route, client_id="contract-2")

    assert sorted(ids(receive_exactly(second, 30))) == list(range(1, 31))
    second.close()


def test_only_what_was_committed_is_passed(harness: BrokerHarness) -> None:
    """What was received and not committed comes again, and so does what was only read ahead."""
    harness.need("redelivery")
    route = harness.ready_route(partitions=1)
    publish(harness, records(route, 50))
    first = harness.broker.subscribe(route, client_id="contract-1")
    received = receive_exactly(first, 20)
    first.commit(received[:12])
    first.close()

    second = harness.broker.subscribe(route, client_id="contract-2")

    assert ids(receive_exactly(second, 38)) == list(range(13, 51))
    second.close()


def test_commit_of_a_record_covers_all_before_it(harness: BrokerHarness) -> None:
    harness.need("offsets", "redelivery")
    route = harness.ready_route(partitions=1)
    publish(harness, records(route, 10))
    first = harness.broker.subscribe(route, client_id="contract-1")
    received = receive_exactly(first, 10)
    first.commit([received[6]])
    first.commit([received[2]])  # an older one takes nothing back
    first.close()

    second = harness.broker.subscribe(route, client_id="contract-2")

    assert ids(receive_exactly(second, 3)) == [8, 9, 10]
    second.close()


def test_groups_do_not_know_each_other(harness: BrokerHarness) -> None:
    harness.need("groups", "redelivery")
    route = harness.ready_route()
    publish(harness, records(route, 10))
    one = harness.broker.subscribe(route, client_id="contract-1")
    one.commit(receive_exactly(one, 10))
    one.close()

    other = harness.broker.subscribe(replace(route, group=f"{route.group}-other"), client_id="contract-2")

    assert sorted(ids(receive_exactly(other, 10))) == list(range(1, 11))
    other.close()


def test_ended_subscription_says_so(harness: BrokerHarness) -> None:
    route = harness.ready_route()
    subscription = harness.broker.subscribe(route, client_id="contract")
    subscription.close()
    subscription.close()  # a second time is harmless

    with pytest.raises(LostSubscriptionError):
        subscription.receive(max_records=1, timeout=NOW)


# --- topics and positions --------------------------------------------------------------------------------------------


def test_topics_are_created_once(harness: BrokerHarness) -> None:
    harness.need("topics")
    missing, present = harness.route(), harness.ready_route(partitions=2)
    assert [state.exists for state in harness.broker.topics([missing, present])] == [False, True]

    states = harness.broker.create_topics([missing, present], partitions=5)

    assert [(state.topic, state.exists, state.partitions, state.problem) for state in states] == [
        (missing.topic, True, 5, ""),
        (present.topic, True, 2, ""),
    ]
    assert harness.broker.create_topics([missing, present]) == states
    assert harness.broker.topics([]) == []


def test_positions_say_how_far_a_group_is(harness: BrokerHarness) -> None:
    harness.need("positions")
    route = harness.ready_route(partitions=2)
    publish(harness, records(route, 10))
    fresh = harness.broker.positions(route)
    assert fresh is not None
    assert (fresh.lag, fresh.committed, fresh.first) == (10, {}, {0: 0, 1: 0})
    subscription = harness.broker.subscribe(route, client_id="contract")
    received = receive_exactly(subscription, 10)
    subscription.commit(received[:4])

    halfway = harness.broker.positions(route)
    assert halfway is not None
    assert 0 < halfway.lag < 10
    assert not halfway.passed(fresh.end)

    subscription.commit(received)
    publish(harness, records(route, 3, first_id=11))
    behind = harness.broker.positions(route)
    assert behind is not None
    assert behind.lag == 3
    assert behind.passed(fresh.end)
    subscription.close()


def test_positions_of_a_topic_that_does_not_exist_are_empty(harness: BrokerHarness) -> None:
    harness.need("positions")

    positions = harness.broker.positions(harness.route())

    assert positions is not None
    assert (positions.end, positions.lag) == ({}, 0)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _too_large(record: OutgoingRecord) -> OutgoingRecord:
    return structs.replace(record, value=b"9" * (SMALL_RECORD_BYTES + 10_000))


def _delivered_in_order(harness: BrokerHarness, route: ServiceRoute) -> set[int]:
    """Return the ids on the topic, after a check that each key's came in order, a repeat aside."""
    positions = harness.broker.positions(route)
    assert positions is not None
    subscription = harness.broker.subscribe(route, client_id="contract-reader")
    received = receive_exactly(subscription, sum(positions.end.values()))
    subscription.close()
    for numbers in ids_by_key(received).values():
        firsts = list(dict.fromkeys(numbers))
        assert firsts == sorted(firsts)
    return set(ids(received))
