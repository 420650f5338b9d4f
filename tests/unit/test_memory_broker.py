"""What the memory broker does beyond the contract: the hooks for tests."""

from __future__ import annotations

from datetime import timedelta

import pytest

from outbox.brokers.base import OutgoingRecord
from outbox.brokers.memory import MemoryBroker
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import BrokerUnavailableError, ConfigurationError

ROUTE = ServiceRoute(service="agent", table="t", topic="agent.outbox", group="agent-consumer")
SOON = timedelta(milliseconds=50)


def _record(number: int, key: str = "k") -> OutgoingRecord:
    return OutgoingRecord(number, ROUTE.topic, key, str(number).encode(), ())


def test_outage_between_send_and_report_leaves_records_unanswered_and_sent() -> None:
    broker = MemoryBroker()
    pending = broker.producer(client_id="t").send([_record(1), _record(2)])

    broker.go_away()
    report = pending.report(SOON)

    assert (report.acknowledged, report.unanswered) == ((), (1, 2))
    assert report.outage
    assert [record.value for record in broker.records(ROUTE.topic)] == [b"1", b"2"]
    broker.come_back()
    assert pending.report(SOON).acknowledged == (1, 2)


def test_outage_wakes_a_waiting_receiver() -> None:
    broker = MemoryBroker()
    subscription = broker.subscribe(ROUTE, client_id="t")
    broker.go_away()

    with pytest.raises(BrokerUnavailableError):
        subscription.receive(max_records=1, timeout=timedelta(seconds=30))


def test_refusal_is_by_predicate() -> None:
    broker = MemoryBroker()
    producer = broker.producer(client_id="t")
    broker.refuse(lambda record: "no even ones" if record.outbox_id % 2 == 0 else None)

    report = producer.send([_record(1), _record(2), _record(3)]).report(SOON)
    assert report.acknowledged == (1, 3)
    assert [(refusal.outbox_id, refusal.reason) for refusal in report.refused] == [(2, "no even ones")]

    broker.refuse(None)
    assert producer.send([_record(2)]).report(SOON).acknowledged == (2,)


def test_topics_may_have_to_be_created() -> None:
    broker = MemoryBroker(creates_topics=False, partitions=2)
    with pytest.raises(BrokerUnavailableError, match=ROUTE.topic):
        broker.producer(client_id="t").send([_record(1)])

    [state] = broker.create_topics([ROUTE])

    assert (state.exists, state.partitions) == (True, 2)
    assert broker.producer(client_id="t").send([_record(1)]).report(SOON).acknowledged == (1,)


def test_foreign_record_goes_where_it_is_put() -> None:
    broker = MemoryBroker(partitions=3)
    broker.put(ROUTE.topic, value=None, key=None, partition=2)

    [record] = broker.subscribe(ROUTE, client_id="t").receive(max_records=5, timeout=SOON)

    assert (record.partition, record.offset, record.key, record.value) == (2, 0, None, None)


@pytest.mark.parametrize("option", ["partitions", "max_record_bytes"])
def test_wrong_option_is_named(option: str) -> None:
    with pytest.raises(ConfigurationError, match=option):
        MemoryBroker(**{option: 0})
