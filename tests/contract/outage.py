"""The contract's part that takes a broker away: for every backend, in the suite that may do so."""

from __future__ import annotations

from datetime import timedelta

import pytest

from outbox.brokers.base import OutgoingRecord, Producer, Subscription
from outbox.exceptions import BrokerUnavailableError
from tests.contract.brokers import ANSWER_TIMEOUT, RECEIVE_TIMEOUT, BrokerHarness, ids, receive_exactly, records
from tests.waiting import wait_until


def outage_is_said_and_survived(harness: BrokerHarness) -> None:
    """Check that an outage is named as one, and that producer and subscription go on by themselves after it."""
    harness.need("outage")
    route = harness.ready_route()
    producer = harness.broker.producer(client_id="contract")
    subscription = harness.broker.subscribe(route, client_id="contract")
    assert len(producer.send(records(route, 10)).report(ANSWER_TIMEOUT).acknowledged) == 10
    subscription.commit(receive_exactly(subscription, 10))

    harness.go_away()
    with pytest.raises(BrokerUnavailableError):
        _say_outage(producer, records(route, 5, first_id=11))
    wait_until(lambda: _says_outage(subscription), timeout=30, message="receive() says the outage")
    for call in (harness.broker.topics, harness.broker.create_topics):
        with pytest.raises(BrokerUnavailableError):
            call([route])
    with pytest.raises(BrokerUnavailableError):
        harness.broker.positions(route)

    harness.come_back()
    acknowledged: set[int] = set()
    received: set[int] = set()

    def all_sent() -> bool:
        waiting = [record for record in records(route, 20, first_id=11) if record.outbox_id not in acknowledged]
        try:
            acknowledged.update(producer.send(waiting).report(ANSWER_TIMEOUT).acknowledged)
        except BrokerUnavailableError:
            return False
        return len(acknowledged) == 20

    def all_received() -> bool:
        try:
            batch = subscription.receive(max_records=50, timeout=RECEIVE_TIMEOUT)
            subscription.commit(batch)
        except BrokerUnavailableError:
            return False
        received.update(ids(batch))
        return received >= set(range(11, 31))

    def all_committed() -> bool:
        positions = harness.broker.positions(route)
        return positions is not None and positions.lag == 0

    wait_until(all_sent, timeout=60)
    wait_until(all_received, timeout=60)
    wait_until(all_committed, timeout=30)
    producer.close()
    subscription.close()


def _say_outage(producer: Producer, batch: list[OutgoingRecord]) -> None:
    """Send; a report of an outage counts as the exception does."""
    report = producer.send(batch).report(timedelta(seconds=5))
    if report.unanswered:
        assert report.outage
        assert set(report.unanswered) == {record.outbox_id for record in batch}
        raise BrokerUnavailableError(report.outage)


def _says_outage(subscription: Subscription) -> bool:
    try:
        subscription.receive(max_records=1, timeout=RECEIVE_TIMEOUT)
    except BrokerUnavailableError:
        return True
    return False
