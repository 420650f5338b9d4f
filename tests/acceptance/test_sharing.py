"""Any number of relays and consumers share the work of a service, and take over from each other."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.acceptance.conftest import Install
from tests.acceptance.harness import Installation
from tests.acceptance.plans import Plan
from tests.acceptance.topics import group_members

TAKE_OVER_S = 10.0
TRICKLE = Plan(prefix="k", threads=4, keys=20, transactions=0, pause_ms=100, seed=31)
"""80 keys, so that there are some in every shard and partition, and a few events a second for each share."""


def shares(installation: Installation, role: str) -> dict[str, int]:
    """Return how many shards each worker of a role holds by a lease that has not run out."""
    now = installation.database.now
    sql = (
        f"SELECT owner, COUNT(*) FROM outbox_shard_leases WHERE service = 'probe' AND role = %s AND owner <> ''"
        f" AND expires_at > {now} GROUP BY owner"
    )
    return dict(installation.database.query(sql, [role]))


def members(installation: Installation) -> dict[str, int]:
    """Return the members of the stable consumer group and how many partitions each has; empty when it is not stable."""
    assert installation.kafka is not None
    found: dict[str, Any] = group_members(installation.kafka, installation.group())
    if found["group_state"] != "Stable":
        return {}
    assigned = {member["member_id"]: member["member_assignment"] for member in found["members"]}
    return {
        member: sum(len(topic["partitions"]) for topic in assignment["assigned_partitions"])
        for member, assignment in assigned.items()
    }


def longest_wait(installation: Installation, *, since: Any, start: str, end: str) -> float:
    """Return the longest time in seconds from ``start``, or ``since`` where that is later, to ``end``."""
    sql = (
        f"SELECT MAX(TIMESTAMPDIFF(MICROSECOND, GREATEST({start}, %s), {end}))"
        f" FROM probe_outbox_messages WHERE {end} > %s"
    )
    return float(installation.database.value(sql, [since, since])) / 1e6


@pytest.mark.parametrize(("database", "broker"), [("mariadb", "kafka"), ("mysql", "kafka"), ("sqlite", "table")])
def test_two_relays_and_two_consumers_share_the_work(install: Install, database: str, broker: str) -> None:
    installation = install(database=database, broker=broker, options={"LEASES": {"HEARTBEAT_SECONDS": 0.3}})
    relays = [installation.relay(), installation.relay()]
    consumers = [installation.consumer(), installation.consumer()]
    installation.wait(lambda: sorted(shares(installation, "relay").values()) == [8, 8], "the relays have equal shares")
    if broker == "kafka":
        installation.wait(lambda: sorted(members(installation).values()) == [1, 2], "both consumers have partitions")
    else:
        installation.wait(
            lambda: sorted(shares(installation, "consumer-shards").values()) == [8, 8],
            "the consumers have equal shares",
        )
    installation.load(Plan(prefix="k", threads=4, keys=20, transactions=100, events=3, seed=32, fields={"sleep_ms": 1}))
    installation.wait_until_done(alive=[*relays, *consumers])
    installation.check()
    assert {effect.worker_pid for effect in installation.effects()} == {consumer.pid for consumer in consumers}
    for relay in relays:
        relay.stop()
        assert "published 0," not in relay.text


def test_share_of_a_killed_relay_is_taken_over(installation: Installation, record_property: Any) -> None:
    relays = [installation.relay(), installation.relay()]
    consumer = installation.consumer()
    load = installation.start_load(TRICKLE)
    installation.wait(lambda: sorted(shares(installation, "relay").values()) == [8, 8], "the relays have equal shares")
    installation.wait(lambda: installation.statuses()["consumed"] > 100, "work was under way")
    relays[0].kill9()
    killed_at = installation.database.value(f"SELECT {installation.database.now}")
    installation.wait(lambda: list(shares(installation, "relay").values()) == [16], "one relay has all shares")
    load.stop()
    installation.wait_until_done(alive=[relays[1], consumer])
    installation.check()
    took_s = longest_wait(installation, since=killed_at, start="created_at", end="published_at")
    record_property("take_over_seconds", took_s)
    print(f"the relay's share was taken over in {took_s:.1f} s")
    assert took_s <= TAKE_OVER_S


def test_share_of_a_killed_consumer_is_taken_over(installation: Installation, record_property: Any) -> None:
    relay = installation.relay()
    consumers = [installation.consumer(), installation.consumer()]
    installation.wait(lambda: sorted(members(installation).values()) == [1, 2], "both consumers have partitions")
    load = installation.start_load(TRICKLE)
    installation.wait(lambda: installation.statuses()["consumed"] > 100, "work was under way")
    consumers[0].kill9()
    killed_at = installation.database.value(f"SELECT {installation.database.now}")
    installation.wait(lambda: list(members(installation).values()) == [3], "one consumer has all partitions")
    load.stop()
    installation.wait_until_done(alive=[relay, consumers[1]])
    installation.check()
    took_s = longest_wait(installation, since=killed_at, start="published_at", end="consumed_at")
    record_property("take_over_seconds", took_s)
    print(f"the consumer's share was taken over in {took_s:.1f} s")
    assert took_s <= TAKE_OVER_S


@pytest.mark.parametrize(("database", "broker"), [("mariadb", "kafka"), ("mysql", "kafka"), ("sqlite", "table")])
def test_consumers_that_come_and_go_repeat_nothing(install: Install, database: str, broker: str) -> None:
    """Every change of the group takes partitions away from a member that is in the middle of its batch."""
    installation = install(
        database=database,
        broker=broker,
        options={"CONSUMER": {"BATCH_SIZE": 30}, "LEASES": {"TTL_SECONDS": 2.0, "HEARTBEAT_SECONDS": 0.3}},
    )
    dice = random.Random(33)
    relay = installation.relay()
    load = installation.start_load(
        Plan(prefix="k", threads=4, keys=20, transactions=0, pause_ms=60, seed=33, fields={"sleep_ms": 5})
    )
    consumers = [installation.consumer()]
    for _ in range(7):
        target = installation.statuses()["consumed"] + 40
        installation.wait(
            lambda target=target: installation.statuses()["consumed"] >= target,
            "work goes on",
            alive=[relay, load, *consumers],
        )
        if len(consumers) == 1 or (len(consumers) < 4 and dice.random() < 0.6):
            consumers.append(installation.consumer())
            installation.wait_until_at_work(consumers[-1])
        else:
            consumers.pop(dice.randrange(len(consumers))).stop()
    load.stop()
    installation.wait_until_done(alive=[relay, *consumers])
    installation.check()


def test_slow_handler_keeps_its_membership(installation: Installation) -> None:
    """It takes longer than a session lasts; heartbeats go on beside it, and the others are not held up."""
    relay = installation.relay()
    consumers = [installation.consumer(), installation.consumer()]
    installation.wait(lambda: sorted(members(installation).values()) == [1, 2], "both consumers have partitions")
    before = members(installation)
    publisher = installation.publisher()
    publisher.publish(("step", {"key": "slow", "sleep_ms": 8_000}))
    installation.wait(installation.begun, "the slow handler began", alive=[relay, *consumers])
    (mark,) = installation.begun()
    publisher.publish(*[("step", {"key": f"k{n}", "n": n}) for n in range(40)])
    installation.wait_until_done(alive=[relay, *consumers])
    installation.check()
    before_slow = [effect.outbox_id for effect in installation.effects()].index(mark.outbox_id)
    assert before_slow, "the other consumer did not go on meanwhile"
    assert members(installation) == before
    assert [each.outbox_id for each in installation.begun()].count(mark.outbox_id) == 1


def test_partition_that_moves_away_from_a_slow_handler_repeats_nothing(installation: Installation) -> None:
    """The handler takes longer than a rebalance waits for it, so its record goes to the new member as well."""
    relay = installation.relay()
    consumers = [installation.consumer()]
    installation.wait(lambda: list(members(installation).values()) == [3], "the consumer has all partitions")
    installation.publish(*[("step", {"key": f"slow-{n}", "n": n, "sleep_ms": 1_300}) for n in range(8)])
    installation.wait(installation.begun, "the slow handler began", alive=[relay, *consumers])
    consumers.append(installation.consumer())
    installation.publish(*[("step", {"key": f"slow-{n}", "n": n + 8}) for n in range(8)])
    installation.wait_until_done(alive=[relay, *consumers])
    installation.check()
    assert len(installation.begun()) == 16, "a handler ran again for an event that was done"
    assert len(members(installation)) == 2
