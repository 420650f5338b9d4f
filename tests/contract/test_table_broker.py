"""The suite for every broker against the table broker, on every database; and what is the table broker's alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.db.utils import OperationalError

from outbox.brokers.base import TopicState
from outbox.exceptions import LostSubscriptionError
from outbox.models import ShardLease, Worker
from tests.conftest import Configure
from tests.contract.brokers import ANSWER_TIMEOUT, ids, publish, receive_exactly, records
from tests.contract.table import TableHarness
from tests.contract.test_broker_contract import *  # noqa: F403 - its tests, with the harness below
from tests.contract.test_broker_members import *  # noqa: F403

NOW = timedelta(0)
HEARTBEAT_S = 0.1


@pytest.fixture
def harness(configure: Configure) -> Iterator[TableHarness]:
    configure(BROKER={"BACKEND": "table"}, LEASES={"HEARTBEAT_SECONDS": HEARTBEAT_S})
    opened = TableHarness()
    yield opened
    opened.close()


def test_row_becomes_a_message_when_it_is_marked(harness: TableHarness) -> None:
    route = harness.route()
    subscription = harness.broker.subscribe(route, client_id="contract")
    pending = harness.broker.producer(client_id="contract").send(records(route, 3))
    assert subscription.receive(max_records=10, timeout=NOW) == []

    pending.report(ANSWER_TIMEOUT)

    assert ids(subscription.receive(max_records=10, timeout=NOW)) == [1, 2, 3]
    subscription.close()


def test_topic_is_always_there_and_has_no_positions(harness: TableHarness) -> None:
    route = harness.route()
    state = TopicState(route.topic, exists=True, partitions=1)

    assert harness.broker.topics([route]) == harness.broker.create_topics([route], partitions=5) == [state]
    assert harness.broker.positions(route) is None


def test_silent_member_is_replaced_when_its_leases_run_out(harness: TableHarness, configure: Configure) -> None:
    configure(BROKER={"BACKEND": "table"}, LEASES={"TTL_SECONDS": 0.5, "HEARTBEAT_SECONDS": HEARTBEAT_S})
    route = harness.route()
    publish(harness, records(route, 40, keys=40))
    silent = harness.broker.subscribe(route, client_id="contract-1")
    assert len(receive_exactly(silent, 40)) == 40

    other = harness.broker.subscribe(route, client_id="contract-2")

    assert sorted(ids(receive_exactly(other, 40, commit=True, timeout_s=10))) == list(range(1, 41))
    other.close()


def test_ended_subscription_holds_no_shard(harness: TableHarness, database_alias: str) -> None:
    subscription = harness.broker.subscribe(harness.route(), client_id="contract")
    subscription.receive(max_records=1, timeout=NOW)
    assert "" not in _owners(database_alias)

    subscription.close()
    with pytest.raises(LostSubscriptionError):
        subscription.receive(max_records=1, timeout=NOW)

    assert _owners(database_alias) == {""}
    assert not Worker.objects.using(database_alias).exists()


def test_subscription_ends_without_the_database_and_its_leases_run_out(
    harness: TableHarness, database_alias: str
) -> None:
    subscription = harness.broker.subscribe(harness.route(), client_id="contract")
    subscription.receive(max_records=1, timeout=NOW)

    with connections[database_alias].execute_wrapper(_away):
        subscription.close()

    with pytest.raises(LostSubscriptionError):
        subscription.receive(max_records=1, timeout=NOW)
    assert "" not in _owners(database_alias)


def _away(*_: Any) -> None:
    raise OperationalError("the database is away")


def _owners(alias: str) -> set[str]:
    return set(ShardLease.objects.using(alias).values_list("owner", flat=True))
