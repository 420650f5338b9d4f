"""The table broker keeps the same promises with nothing to install."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from outbox.brokers.table import TableBroker
from outbox.consumer.loop import Consumer
from outbox.declarations.routes import ServiceRoute
from outbox.models import Worker
from outbox.relay.loop import Relay
from outbox.workers import embedded
from tests import factories
from tests.conftest import Configure
from tests.factories import make_due, rows, status_counts, statuses
from tests.relays import MakeRelay, step_until_idle
from tests.toys import BULK, Toys, effect_ids
from tests.waiting import wait_until

OpenRows = Callable[[ServiceRoute], embedded.LeasedRows]


@pytest.fixture
def open_rows(alias: str) -> Iterator[OpenRows]:
    """Return what opens a member's rows; they are closed after the test, with their heartbeats."""
    opened: list[embedded.LeasedRows] = []

    def open_one(route: ServiceRoute) -> embedded.LeasedRows:
        opened.append(embedded.open_rows(route))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def embedded_broker(open_rows: OpenRows) -> TableBroker:
    return TableBroker(open_rows=open_rows)


def through(relay: Relay, consumer: Consumer, alias: str, *, rounds: int = 30) -> None:
    """Let relay and consumer work by turns until nothing is unfinished."""
    for _ in range(rounds):
        step_until_idle(relay)
        while consumer.step(100):
            pass
        make_due(alias)
        if not {"pending", "published"} & set(statuses(alias).values()):
            return


def test_embedded_broker_brings_every_event_to_its_end_in_order(
    alias: str, embedded_broker: TableBroker, make_relay: MakeRelay, toys: Toys
) -> None:
    ids = rows(alias, 30, key=lambda number: f"key-{number % 3}", event_type=BULK)
    poison, slow = ids[4], ids[9]
    toys.fail(poison, ValueError("no"))
    toys.fail(slow, ValueError("not yet"), times=2)
    factories.change(alias, poison, max_retry=2)

    through(
        make_relay(broker=embedded_broker, batch_size=7),
        factories.consumer(alias, toys, broker=embedded_broker),
        alias,
    )

    assert {each for each, status in statuses(alias).items() if status == "dead"} == {poison}
    assert status_counts(alias) == {"consumed": 29, "dead": 1}
    for key in range(3):
        assert effect_ids(alias, key=f"key-{key}") == [each for each in ids[key::3] if each != poison]


def test_embedded_consumers_share_the_shards(
    alias: str, embedded_broker: TableBroker, open_rows: OpenRows, make_relay: MakeRelay
) -> None:
    ids = rows(alias, 60, key=lambda number: f"key-{number}")
    step_until_idle(make_relay(broker=embedded_broker))
    subscriptions = [open_rows(factories.repository().route) for _ in range(2)]
    for _ in range(2):
        for subscription in subscriptions:
            subscription._leases.refresh()

    parts = [{row[0] for row in subscription.fetch(100)} for subscription in subscriptions]

    assert set.union(*parts) == set(ids)
    assert not set.intersection(*parts)
    assert all(len(part) > 10 for part in parts)
    subscriptions[0].close()
    subscriptions[1]._leases.refresh()
    assert {row[0] for row in subscriptions[1].fetch(100)} == set(ids)


def test_member_is_seen_on_a_timer_while_it_fetches_nothing(
    alias: str, open_rows: OpenRows, configure: Configure
) -> None:
    configure(LEASES={"HEARTBEAT_SECONDS": 0.05})
    member = open_rows(factories.repository().route)
    member.fetch(1)
    first = Worker.objects.using(alias).get(role="consumer-shards").seen_at

    wait_until(lambda: Worker.objects.using(alias).get(role="consumer-shards").seen_at > first)

    member.close()
    assert not Worker.objects.using(alias).exists()


def test_embedded_broker_reads_what_is_published_until_its_consumer_has_moved_it(
    alias: str, embedded_broker: TableBroker, make_relay: MakeRelay, toys: Toys
) -> None:
    ids = rows(alias, 3)
    step_until_idle(make_relay(broker=embedded_broker))
    subscription = embedded_broker.subscribe(factories.repository().route, client_id="c")

    first = subscription.receive(max_records=10, timeout=timedelta(0))
    again = subscription.receive(max_records=10, timeout=timedelta(0))
    factories.consumer(alias, toys).handle(first)

    assert [each.offset for each in first] == [each.offset for each in again] == ids
    assert subscription.receive(max_records=10, timeout=timedelta(0)) == []
    subscription.close()
