"""Members of a Kafka group that are slow, that come and go, and that die."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from outbox.brokers.base import IncomingRecord
from outbox.brokers.kafka import KafkaBroker
from outbox.declarations.routes import ServiceRoute
from tests.contract.brokers import ANSWER_TIMEOUT, KafkaHarness, Member, ids, publish, receive_exactly, records
from tests.services import require
from tests.waiting import wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
SESSION_S = 6.0
TAKEOVER_S = 10.0

# A member in a process of its own: takes records, commits none, says so, and waits to be killed.
_VICTIM = """
import sys
from datetime import timedelta
from outbox.brokers.kafka import KafkaBroker
from outbox.declarations.routes import ServiceRoute

servers, topic, group = sys.argv[1:]
broker = KafkaBroker(bootstrap_servers=servers)
subscription = broker.subscribe(ServiceRoute("contract", "t", topic, group), client_id="victim")
while True:
    for record in subscription.receive(max_records=10, timeout=timedelta(seconds=1)):
        print(record.partition, flush=True)
"""


@pytest.fixture
def hasty() -> Iterator[KafkaBroker]:
    """A broker whose members wait for nobody's commits for long."""
    broker = KafkaBroker(bootstrap_servers=require("kafka"), revoke_timeout_seconds=0.5)
    yield broker
    broker.close()


def test_leaving_partition_waits_for_no_record_that_was_handed_back(harness: KafkaHarness) -> None:
    patient = KafkaBroker(bootstrap_servers=require("kafka"), revoke_timeout_seconds=120)
    route = harness.ready_route(partitions=4)
    publish(harness, records(route, 40, keys=40))
    first = patient.subscribe(route, client_id="first")
    first.hand_back(receive_exactly(first, 40))

    newcomer = Member(harness, route, client_id="newcomer")

    wait_until(lambda: len(first.assignments) == 2 and newcomer.received, timeout=30)
    newcomer.leave()
    first.close()
    patient.close()


def test_killed_member_is_replaced_within_ten_seconds(harness: KafkaHarness) -> None:
    route = harness.ready_route(partitions=4)
    survivor = Member(harness, route, client_id="survivor")
    command = [sys.executable, "-c", _VICTIM, require("kafka"), route.topic, route.group]
    victim = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        sent = 0

        def victim_works() -> bool:
            nonlocal sent
            publish(harness, records(route, 20, keys=20, first_id=sent + 1))
            sent += 20
            return _has_output(victim)

        wait_until(victim_works, timeout=30, interval=0.3)
    finally:
        victim.kill()
        victim.wait()
    killed_at = time.monotonic()

    wait_until(lambda: set(ids(survivor.received)) == set(range(1, sent + 1)), timeout=TAKEOVER_S, interval=0.05)

    print(f"taken over {time.monotonic() - killed_at:.1f} s after the kill")
    survivor.leave()


def test_slow_caller_keeps_its_membership(harness: KafkaHarness) -> None:
    """Promise: a slow handler does not get the member thrown out of its group."""
    route = harness.ready_route(partitions=2)
    publish(harness, records(route, 10))
    subscription = harness.broker.subscribe(route, client_id="slow")
    in_hand = receive_exactly(subscription, 10)
    started = time.monotonic()
    with _admin() as admin:
        member = _members(admin, route)

        def still_there() -> bool:
            assert _members(admin, route) == member
            return time.monotonic() - started > SESSION_S + 2

        wait_until(still_there, timeout=30, interval=0.5)

    subscription.commit(in_hand)

    assert _lag(harness.broker, route) == 0
    assert subscription.receive(max_records=10, timeout=timedelta(milliseconds=300)) == []
    subscription.close()


def test_member_with_a_full_buffer_takes_part_in_rebalances(harness: KafkaHarness) -> None:
    """It reads nothing more and polls all the same, or the whole group would wait for it."""
    route = harness.ready_route(partitions=4)
    publish(harness, records(route, 400, keys=40))
    servers = require("kafka")
    broker = KafkaBroker(bootstrap_servers=servers, prefetch_records=8, revoke_timeout_seconds=0.5)
    full = broker.subscribe(route, client_id="full")
    full.commit(receive_exactly(full, 5))
    wait_until(lambda: full._ledger.room == 0, timeout=10)

    newcomer = Member(harness, route, client_id="newcomer")
    wait_until(lambda: newcomer.received, timeout=10, message="a share for the newcomer")

    full.close()
    wait_until(lambda: _lag(broker, route) == 0, timeout=30)
    newcomer.leave()
    broker.close()


def test_partition_in_hand_waits_for_its_commit_before_it_moves(harness: KafkaHarness) -> None:
    route = harness.ready_route(partitions=4)
    publish(harness, records(route, 40, keys=40))
    first = harness.broker.subscribe(route, client_id="first")
    in_hand = receive_exactly(first, 40)
    newcomer = Member(harness, route, client_id="newcomer")
    wait_until(lambda: any(tenure.is_leaving for tenure in first._ledger._tenures.values()), timeout=30)

    first.commit(in_hand)
    publish(harness, records(route, 40, keys=40, first_id=41))
    wait_until(lambda: len(newcomer.received) >= 10, timeout=30)

    newcomer.leave()
    assert min(ids(newcomer.received)) > 40
    first.close()


def test_slow_caller_does_not_hold_up_the_group_and_takes_nothing_back(
    harness: KafkaHarness, hasty: KafkaBroker
) -> None:
    """After the wait a partition moves, its records come again, and the late commit changes nothing."""
    route = harness.ready_route(partitions=4)
    publish(harness, records(route, 40, keys=40))
    slow = hasty.subscribe(route, client_id="slow")
    in_hand = receive_exactly(slow, 40)

    newcomer = hasty.subscribe(route, client_id="newcomer")
    taken: list[IncomingRecord] = []

    def newcomer_works() -> bool:
        taken.extend(newcomer.receive(max_records=100, timeout=timedelta(milliseconds=200)))
        return len({record.partition for record in taken}) == 2

    wait_until(newcomer_works, timeout=30, interval=0)
    moved = {record.partition for record in taken}
    assert set(ids(taken)) <= set(ids(in_hand))

    first_of_each = [next(record for record in taken if record.partition == partition) for partition in moved]
    newcomer.commit(first_of_each)
    slow.commit(in_hand)

    positions = hasty.positions(route)
    committed_by_newcomer = {record.partition: record.offset + 1 for record in first_of_each}
    for partition, end in positions.end.items():
        assert positions.committed[partition] == committed_by_newcomer.get(partition, end)
    slow.close()
    newcomer.close()


def test_partitions_added_later_are_read(harness: KafkaHarness) -> None:
    route = harness.ready_route(partitions=1)
    broker = KafkaBroker(bootstrap_servers=require("kafka"), common={"metadata_max_age_ms": 500})
    subscription = broker.subscribe(route, client_id="reader")
    publish(harness, records(route, 1))
    subscription.commit(receive_exactly(subscription, 1))
    with _admin() as admin:
        admin.create_partitions({route.topic: 6})
    producer = broker.producer(client_id="writer")
    spread: set[int] = set()
    sent = 1

    def all_are_read() -> bool:
        nonlocal sent
        batch = records(route, 30, keys=30, first_id=sent + 1)
        sent += 30
        assert len(producer.send(batch).report(ANSWER_TIMEOUT).acknowledged) == 30
        spread.update(record.partition for record in receive_exactly(subscription, 30))
        return len(spread) > 1

    wait_until(all_are_read, timeout=30, interval=0.1)
    producer.close()
    subscription.close()
    broker.close()


def test_members_that_come_and_go_lose_nothing(harness: KafkaHarness) -> None:
    route = harness.ready_route(partitions=6)
    rand = random.Random(4)
    members = [Member(harness, route, client_id="member-0")]
    gone: list[Member] = []
    producer = harness.broker.producer(client_id="writer")
    sent = 0
    for number in range(1, 13):
        if len(members) > 1 and rand.random() < 0.4:
            leaver = members.pop(rand.randrange(len(members)))
            leaver.leave()
            gone.append(leaver)
        elif len(members) < 5:
            members.append(Member(harness, route, client_id=f"member-{number}"))
        batch = records(route, 60, keys=60, first_id=sent + 1)
        assert len(producer.send(batch).report(ANSWER_TIMEOUT).acknowledged) == len(batch)
        sent += len(batch)

    def all_ids() -> list[int]:
        return [number for member in [*members, *gone] for number in ids(list(member.received))]

    wait_until(lambda: set(all_ids()) == set(range(1, sent + 1)), timeout=60)
    wait_until(lambda: _lag(harness.broker, route) == 0, timeout=30)
    for member in members:
        member.leave()
    producer.close()
    assert sorted(all_ids()) == list(range(1, sent + 1)), "nobody was slow, so nothing had to come twice"


# --- helpers ---------------------------------------------------------------------------------------------------------


def _has_output(process: subprocess.Popen[str]) -> bool:
    import select

    assert process.stdout is not None
    assert process.poll() is None, "the victim ended by itself"
    ready, _, _ = select.select([process.stdout], [], [], 0)
    return bool(ready)


def _admin() -> Any:
    from kafka import KafkaAdminClient

    return KafkaAdminClient(bootstrap_servers=require("kafka"))


def _members(admin: Any, route: ServiceRoute) -> set[str]:
    with suppress(KeyError):
        return {member["member_id"] for member in admin.describe_groups([route.group])[route.group]["members"]}
    return set()


def _lag(broker: KafkaBroker | Any, route: ServiceRoute) -> int:
    positions = broker.positions(route)
    assert positions is not None
    return positions.lag
