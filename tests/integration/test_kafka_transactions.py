"""Topics on a real Kafka on which others write in transactions: partitions end with a marker, which is no record."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command

from outbox.brokers.kafka import KafkaBroker
from outbox.coordination.shutdown import StopFlag
from outbox.declarations.routes import ServiceRoute
from outbox.lifecycle import Status
from outbox.models import RejectedRecord, ShardLease, Worker, service_route
from outbox.workers.build import run_consumers, topic_is_drained
from outbox.workers.lag import read_lags
from tests import factories
from tests.conftest import Configure
from tests.contract.brokers import KafkaHarness
from tests.factories import rows, statuses
from tests.services import require
from tests.toys import ManualClock, Toys, effect_ids
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize("database_alias", ["default"], indirect=True)

PARTITIONS = 2
DEADLINE_S = 40.0


@pytest.fixture
def broker(harness: KafkaHarness) -> KafkaBroker:
    broker: KafkaBroker = harness.broker
    return broker


@pytest.fixture
def alias(database_alias: str, configure: Configure) -> str:
    """Make every service live on the database and on Kafka, with topics of the test's own."""
    configure(
        NAMESPACE=f"transactions-{secrets.token_hex(4)}",
        BROKER={"BACKEND": "kafka", "OPTIONS": {"bootstrap_servers": require("kafka")}},
    )
    return database_alias


@pytest.fixture
def route(alias: str, broker: KafkaBroker) -> ServiceRoute:
    route = service_route("agent")
    broker.create_topics([route], partitions=PARTITIONS)
    return route


def end_with_markers(harness: KafkaHarness, route: ServiceRoute) -> None:
    """Put a record of others and a marker behind it on each partition, an abort as the last thing on one of them."""
    for partition in range(PARTITIONS):
        harness.put_in_transaction(route, b"of others", partition=partition)
    harness.put_in_transaction(route, b"aborted", commit=False)


def consume_once(route: ServiceRoute, broker: KafkaBroker) -> None:
    """Do what ``consume agent --once`` does, within a bound."""
    stop = StopFlag()
    late = threading.Timer(DEADLINE_S, stop.set)
    late.start()
    try:
        run_consumers([route], broker, stop, once=True)
        assert not stop.is_set, "it ends by itself"
    finally:
        late.cancel()


def test_consume_once_ends_behind_a_marker(
    alias: str, harness: KafkaHarness, broker: KafkaBroker, route: ServiceRoute
) -> None:
    end_with_markers(harness, route)

    consume_once(route, broker)

    kept = RejectedRecord.objects.using(alias).values_list("partition", "offset").order_by("partition", "offset")
    assert list(kept) == [(0, 0), (0, 2), (1, 0)], "what was aborted is a record of others like any"
    consume_once(route, broker)  # and there is nothing left for the next one
    assert RejectedRecord.objects.using(alias).count() == 3


def test_lag_is_none_behind_a_marker(
    alias: str, harness: KafkaHarness, broker: KafkaBroker, route: ServiceRoute
) -> None:
    end_with_markers(harness, route)
    assert read_lags([route]) == {"agent": 6}

    consume_once(route, broker)

    assert read_lags([route]) == {"agent": 0}
    out = StringIO()
    call_command("outbox_status", "agent", "--json", stdout=out)
    [service] = json.loads(out.getvalue())["services"]
    assert (service["lag"], service["lag_problem"]) == (0, "")


def test_what_is_stuck_in_front_of_a_marker_is_sent_again(
    alias: str, harness: KafkaHarness, broker: KafkaBroker, route: ServiceRoute, toys: Toys, clock: ManualClock
) -> None:
    ids = rows(alias, 6, key=str)
    first = factories.relay(alias, broker, toys, clock)
    step_until(first.step, lambda: set(statuses(alias).values()) == {Status.PUBLISHED})
    end_with_markers(harness, route)
    lose_everything(broker, route)
    factories.let_get_stuck(alias, ids, by=timedelta(seconds=301))
    for model in (Worker, ShardLease):
        model.objects.using(alias).all().delete()

    relay = factories.relay(alias, broker, toys, clock, redeliver_after_seconds=300)
    step_until(relay.step, lambda: relay.totals.redelivered == len(ids))

    consumer = factories.consumer(alias, toys, broker=broker)
    step_until(lambda: consumer.step(100), lambda: len(effect_ids(alias)) == len(ids))
    assert sorted(effect_ids(alias)) == ids
    consumer.run(stopped())


def stopped() -> StopFlag:
    """Return the flag by which a worker only closes what it holds."""
    stop = StopFlag()
    stop.set()
    return stop


def step_until(step: Callable[[], object], condition: Callable[[], bool]) -> None:
    def is_true_after_a_step() -> bool:
        step()
        return condition()

    wait_until(is_true_after_a_step, timeout=DEADLINE_S)


def lose_everything(broker: KafkaBroker, route: ServiceRoute) -> None:
    """Stand for a consumer that took the records, committed them and lost them."""
    subscription = broker.subscribe(route, client_id="lossy")

    def is_at_end() -> bool:
        subscription.commit(subscription.receive(max_records=100, timeout=timedelta(milliseconds=200)))
        return topic_is_drained(route, broker)

    wait_until(is_at_end, timeout=DEADLINE_S, message="the group at the end")
    subscription.close()
