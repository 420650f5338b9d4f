"""The suite for every broker backend, where producers of others write in transactions: their markers take offsets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outbox.brokers.base import Positions
from outbox.declarations.routes import ServiceRoute
from tests.contract.brokers import RECEIVE_TIMEOUT, BrokerHarness, KafkaHarness, ids, receive_exactly
from tests.waiting import wait_until


@pytest.fixture
def committed_only() -> Iterator[KafkaHarness]:
    """Kafka, read with ``read_committed``."""
    opened = KafkaHarness(consumer={"isolation_level": "read_committed"})
    yield opened
    opened.close()


def positions(harness: BrokerHarness, route: ServiceRoute) -> Positions:
    found = harness.broker.positions(route)
    assert found is not None
    return found


def until_at_end(harness: BrokerHarness, route: ServiceRoute) -> Positions:
    wait_until(lambda: positions(harness, route).lag == 0, timeout=10, message="the group at the end")
    return positions(harness, route)


@pytest.mark.parametrize("commit", [True, False], ids=["commit", "abort"])
def test_group_is_at_the_end_behind_the_marker_of_a_transaction(harness: BrokerHarness, commit: bool) -> None:
    harness.need("transactions")
    route = harness.ready_route(partitions=1)
    harness.put_in_transaction(route, b"1", b"2", commit=commit)
    before = positions(harness, route)
    subscription = harness.broker.subscribe(route, client_id="contract")

    received = receive_exactly(subscription, 2, commit=True)

    assert ids(received) == [1, 2], "what was aborted comes as well, unless only what was committed is read"
    after = until_at_end(harness, route)
    assert (after.committed, after.end) == ({0: 3}, {0: 3})
    assert after.passed(before.end)
    subscription.close()


def test_marker_that_comes_behind_a_committed_record_is_passed(harness: BrokerHarness) -> None:
    harness.need("transactions")
    assert isinstance(harness, KafkaHarness)
    route = harness.ready_route(partitions=2)
    subscription = harness.broker.subscribe(route, client_id="contract")
    with harness.transaction() as producer:
        producer.send(route.topic, value=b"1", partition=1)
        producer.flush(timeout=30)
        receive_exactly(subscription, 1, commit=True)
        assert until_at_end(harness, route).committed[1] == 1

    wait_until(lambda: positions(harness, route).end[1] == 2, timeout=10)
    assert until_at_end(harness, route).committed == {1: 2}
    subscription.close()


def test_marker_alone_is_passed_by_the_member_that_takes_the_partition_over(harness: BrokerHarness) -> None:
    """The group is left before the marker by a member that ended between the two, or of an earlier version."""
    harness.need("transactions")
    assert isinstance(harness, KafkaHarness)
    route = harness.ready_route(partitions=1)
    with harness.transaction() as producer:
        producer.send(route.topic, value=b"1", partition=0)
        producer.flush(timeout=30)
        first = harness.broker.subscribe(route, client_id="contract-1")
        receive_exactly(first, 1, commit=True)
        first.close()
    wait_until(lambda: positions(harness, route).end == {0: 2}, timeout=10)
    assert positions(harness, route).committed == {0: 1}

    second = harness.broker.subscribe(route, client_id="contract-2")

    assert until_at_end(harness, route).committed == {0: 2}
    assert second.receive(max_records=1, timeout=RECEIVE_TIMEOUT) == []
    second.close()


def test_no_marker_is_passed_before_the_records_in_front_of_it_are_committed(harness: BrokerHarness) -> None:
    harness.need("transactions")
    route = harness.ready_route(partitions=2)
    harness.put_in_transaction(route, b"1", b"2", partition=0)
    harness.put_in_transaction(route, b"3", partition=1)
    subscription = harness.broker.subscribe(route, client_id="contract")
    received = {record.value: record for record in receive_exactly(subscription, 3)}

    subscription.commit([received[b"1"]])
    subscription.hand_back([received[b"3"]])

    # Time enough for several looks at the positions, while records and markers come.
    harness.put_in_transaction(route, b"4", partition=0)
    receive_exactly(subscription, 1)
    for _ in range(8):
        assert subscription.receive(max_records=1, timeout=RECEIVE_TIMEOUT) == []
        assert positions(harness, route).committed == {0: 1}
    subscription.close()
    again = harness.broker.subscribe(route, client_id="contract")
    assert sorted(ids(receive_exactly(again, 3, commit=True))) == [2, 3, 4]
    assert until_at_end(harness, route).committed == {0: 5, 1: 2}
    again.close()


def test_records_between_markers_come_once_and_in_order(harness: BrokerHarness) -> None:
    harness.need("transactions")
    route = harness.ready_route(partitions=1)
    for number in range(1, 31):
        harness.put_in_transaction(route, b"%d" % number, commit=number % 3 > 0)
    subscription = harness.broker.subscribe(route, client_id="contract")

    assert ids(receive_exactly(subscription, 30, max_records=7, commit=True)) == list(range(1, 31))

    until_at_end(harness, route)
    assert subscription.receive(max_records=1, timeout=RECEIVE_TIMEOUT) == []
    subscription.close()


def test_what_was_aborted_is_passed_over_where_only_what_was_committed_is_read(committed_only: KafkaHarness) -> None:
    harness = committed_only
    route = harness.ready_route(partitions=2)
    harness.put_in_transaction(route, b"1", b"2", commit=False)
    harness.put_in_transaction(route, b"3", b"4")
    harness.put_in_transaction(route, b"5", commit=False)
    harness.put_in_transaction(route, b"6", commit=False, partition=1)
    subscription = harness.broker.subscribe(route, client_id="contract")

    assert ids(receive_exactly(subscription, 2, commit=True)) == [3, 4]

    assert until_at_end(harness, route).committed == {0: 8, 1: 2}
    subscription.close()


def test_open_transaction_is_no_lag_where_only_what_was_committed_is_read(committed_only: KafkaHarness) -> None:
    """Nobody of the group can read it yet: who waits for the end of the topic must not wait for that."""
    harness = committed_only
    route = harness.ready_route(partitions=1)
    harness.put_in_transaction(route, b"1")
    subscription = harness.broker.subscribe(route, client_id="contract")
    with harness.transaction() as producer:
        producer.send(route.topic, value=b"2", partition=0)
        producer.flush(timeout=30)
        receive_exactly(subscription, 1, commit=True)
        assert until_at_end(harness, route).end == {0: 2}
    assert ids(receive_exactly(subscription, 1, commit=True)) == [2]
    assert until_at_end(harness, route).end == {0: 4}
    subscription.close()
