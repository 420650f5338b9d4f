"""Two databases with one namespace on one real Kafka: each says so, keeps its own events, and floods nobody."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from outbox.consumer.loop import Consumer
from outbox.declarations.routes import ServiceRoute
from outbox.fields import UtcNow
from outbox.models import RejectedRecord, ShardLease, Worker
from outbox.relay.loop import Relay
from outbox.storage.installations import installation_id
from tests import factories
from tests.contract.brokers import KafkaHarness
from tests.factories import statuses
from tests.services import require
from tests.toys import ManualClock, Toys, effect_ids
from tests.waiting import wait_until

PAIRS = [("mariadb", "postgres"), ("mysql", "mariadb")]
pytestmark = pytest.mark.parametrize(("database_alias", "other_alias"), PAIRS, indirect=True)

KEYS = 12


@dataclass
class Site:
    """One installation: its database, and its workers when they were made."""

    alias: str
    harness: KafkaHarness
    settings: Any
    namespace: str
    toys: Toys
    clock: ManualClock

    def use(self) -> None:
        """Have the settings be those of this installation: but for the database they are the other one's."""
        self.settings.OUTBOX = {
            "NAMESPACE": self.namespace,
            "BROKER": {"BACKEND": "kafka", "OPTIONS": {"bootstrap_servers": require("kafka")}},
            "SERVICES": {service: {"DATABASE": self.alias} for service in ("agent", "task")},
        }

    @property
    def route(self) -> ServiceRoute:
        self.use()
        return factories.repository().route

    def publish(self, count: int) -> list[int]:
        """Insert events of many keys: every partition gets some."""
        return factories.rows(self.alias, count, key=lambda number: f"key-{number % KEYS}")

    def relay(self) -> Relay:
        self.use()
        Worker.objects.using(self.alias).filter(role="relay").delete()
        ShardLease.objects.using(self.alias).all().delete()
        return factories.relay(self.alias, self.harness.broker, self.toys, self.clock, redeliver_after_seconds=300)

    def send(self) -> Relay:
        """Let a relay send all that is due."""
        relay = self.relay()
        wait_until(lambda: not relay.step() and "pending" not in statuses(self.alias).values(), timeout=30)
        return relay

    def consumer(self) -> Consumer:
        self.use()
        return factories.consumer(
            self.alias, self.toys, broker=self.harness.broker, clock=self.clock, poll_interval_ms=200
        )

    def groups(self) -> dict[str | None, int]:
        return dict(RejectedRecord.objects.using(self.alias).values_list("installation", "records"))

    def lag(self) -> int:
        positions = self.harness.broker.positions(self.route)
        assert positions is not None
        return positions.lag

    def status(self) -> dict[str, Any]:
        self.use()
        out = StringIO()
        call_command("outbox_status", "agent", "--json", "--timeout", "30s", stdout=out)
        return dict(json.loads(out.getvalue())["services"][0])


@pytest.fixture
def sites(database_alias: str, other_alias: str, harness: KafkaHarness, settings: Any) -> tuple[Site, Site]:
    """Give two installations that share everything but their database."""
    namespace = f"shared{uuid4().hex[:12]}"
    a, b = (Site(alias, harness, settings, namespace, Toys(), ManualClock()) for alias in (database_alias, other_alias))
    harness.broker.create_topics([a.route], partitions=4)
    return a, b


def drain(consumer: Consumer, site: Site) -> None:
    """Let the only member of the group read the topic to its end."""
    wait_until(lambda: not consumer.step(100) and site.lag() == 0, timeout=60, message="the topic was read")


def test_consumer_that_meets_another_installation_says_so_and_goes_on(
    sites: tuple[Site, Site], caplog: pytest.LogCaptureFixture
) -> None:
    a, b = sites
    assert (a.route.topic, a.route.group) == (b.route.topic, b.route.group)
    a_ids, b_ids = a.publish(30), b.publish(40)
    a.send()
    b.send()
    consumer = a.consumer()

    drain(consumer, a)

    other = installation_id(b.alias)
    assert sorted(effect_ids(a.alias)) == a_ids, "each of its own took effect, once"
    assert set(statuses(b.alias).values()) == {"published"}, "nobody took the other one's for its own"
    assert a.groups() == {other: 40}
    assert (consumer.totals.consumed, consumer.totals.rejected) == (30, 40)
    [said] = [each.getMessage() for each in caplog.records if "another installation shares" in each.getMessage()]
    for part in (other, installation_id(a.alias), a.route.topic, "NAMESPACE"):
        assert part in said

    for role in ("relay", "consumer"):
        Worker.objects.using(a.alias).create(
            worker_id=role, service="agent", role=role, host="h", pid=1, seen_at=UtcNow()
        )
    assert a.status()["attention"] == ["rejected", "other installation"]
    with pytest.raises(CommandError, match="agent: rejected, other installation") as raised:
        call_command("outbox_status", "agent", "--check", "--timeout", "30s", stdout=StringIO())
    assert raised.value.returncode == 2

    # Redelivered, they come again: no further row, nor a further line within the minute.
    factories.let_get_stuck(b.alias, b_ids, by=timedelta(seconds=301))
    relay = b.relay()
    wait_until(lambda: relay.step() or relay.totals.redelivered == 40, timeout=30)
    b.send()
    drain(consumer, a)
    consumer._close()
    assert a.groups() == {other: 80}
    assert sum("another installation shares" in each.getMessage() for each in caplog.records) == 1


def test_stolen_events_are_sent_again_with_growing_pauses_and_arrive_when_the_other_one_leaves(
    sites: tuple[Site, Site],
) -> None:
    a, b = sites
    ids = b.publish(20)
    b.send()
    thief = a.consumer()
    drain(thief, a)
    pauses_s = []
    for _ in range(4):
        rows = [factories.get(b.alias, each) for each in ids]
        pauses_s.append({round((each.next_retry_at - each.published_at).total_seconds(), -2) for each in rows})
        factories.let_get_stuck(b.alias, ids, by=timedelta(seconds=min(pauses_s[-1]) - 30))
        relay = b.relay()
        while relay.step():
            pass
        assert relay.totals.redelivered == 0, "not before its pause is over"
        factories.let_get_stuck(b.alias, ids, by=timedelta(seconds=31))
        b.clock.advance(31)
        wait_until(lambda relay=relay: not relay.step() and relay.totals.redelivered == len(ids), timeout=30)
        wait_until(lambda: set(statuses(b.alias).values()) == {"published"}, timeout=30)
        relay._close()
        drain(thief, a)

    assert pauses_s == [{300}, {600}, {1200}, {2400}]
    thief._close()
    assert set(statuses(b.alias).values()) == {"published"}

    factories.let_get_stuck(b.alias, ids, by=timedelta(hours=1, seconds=1))
    b.send()
    own = b.consumer()
    relay = b.relay()
    wait_until(lambda: [relay.step(), own.step(100)] and len(effect_ids(b.alias)) == len(ids), timeout=60)
    own._close()
    relay._close()

    assert sorted(effect_ids(b.alias)) == ids
    assert set(statuses(b.alias).values()) == {"consumed"}
