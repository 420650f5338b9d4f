"""The suite for every broker backend, with several members of a group."""

from __future__ import annotations

from tests.contract.brokers import (
    ANSWER_TIMEOUT,
    RECEIVE_TIMEOUT,
    BrokerHarness,
    Member,
    ids,
    publish,
    receive_exactly,
    records,
)
from tests.waiting import wait_until


def test_two_members_share_the_work_and_each_record_comes_once(harness: BrokerHarness) -> None:
    harness.need("members")
    route = harness.ready_route(partitions=6)
    members = [Member(harness, route, client_id=f"contract-{number}") for number in (1, 2)]
    producer = harness.broker.producer(client_id="contract")
    sent = 0

    def both_work() -> bool:
        nonlocal sent
        batch = records(route, 60, keys=30, first_id=sent + 1)
        assert len(producer.send(batch).report(ANSWER_TIMEOUT).acknowledged) == 60
        sent += 60
        return all(member.received for member in members)

    wait_until(both_work, timeout=harness.takeover_timeout_s, interval=0.2)
    wait_until(lambda: sum(len(member.received) for member in members) >= sent, timeout=harness.takeover_timeout_s)
    for member in members:
        member.leave()
    producer.close()

    assert sorted(ids(members[0].received + members[1].received)) == list(range(1, sent + 1))


def test_member_that_joins_later_gets_its_share(harness: BrokerHarness) -> None:
    harness.need("members")
    route = harness.ready_route(partitions=6)
    publish(harness, records(route, 60, keys=30))
    members = [Member(harness, route, client_id="contract-1")]
    wait_until(lambda: len(members[0].received) >= 60, timeout=harness.takeover_timeout_s)
    members.append(Member(harness, route, client_id="contract-2"))
    sent = 60

    def newcomer_works() -> bool:
        nonlocal sent
        publish(harness, records(route, 60, keys=30, first_id=sent + 1))
        sent += 60
        return bool(members[1].received)

    wait_until(newcomer_works, timeout=harness.takeover_timeout_s, interval=0.2)
    wait_until(lambda: sum(len(member.received) for member in members) >= sent, timeout=harness.takeover_timeout_s)
    for member in members:
        member.leave()

    assert sorted(ids(members[0].received + members[1].received)) == list(range(1, sent + 1))


def test_member_that_leaves_hands_over(harness: BrokerHarness) -> None:
    harness.need("members")
    route = harness.ready_route(partitions=4)
    leaver = Member(harness, route, client_id="contract-1")
    stayer = Member(harness, route, client_id="contract-2")
    publish(harness, records(route, 40, keys=20))
    wait_until(lambda: len(leaver.received) + len(stayer.received) >= 40, timeout=harness.takeover_timeout_s)
    leaver.leave()
    before = len(stayer.received)

    publish(harness, records(route, 40, keys=20, first_id=41))

    wait_until(lambda: len(stayer.received) >= before + 40, timeout=harness.takeover_timeout_s)
    stayer.leave()
    assert sorted(ids(stayer.received[before:])) == list(range(41, 81))


def test_partition_moves_after_its_records_in_hand_are_committed(harness: BrokerHarness) -> None:
    harness.need("members")
    route = harness.ready_route(partitions=4)
    publish(harness, records(route, 40, keys=40))
    first = harness.broker.subscribe(route, client_id="contract-1")
    in_hand = receive_exactly(first, 40)

    newcomer = Member(harness, route, client_id="contract-2")
    first.commit(in_hand)
    publish(harness, records(route, 40, keys=40, first_id=41))
    received: list[int] = []

    def all_there() -> bool:
        batch = first.receive(max_records=50, timeout=RECEIVE_TIMEOUT)
        first.commit(batch)
        received.extend(ids(batch))
        return len(received) + len(newcomer.received) >= 40

    wait_until(all_there, timeout=harness.takeover_timeout_s, interval=0)
    newcomer.leave()
    first.close()
    assert sorted(received + ids(newcomer.received)) == list(range(41, 81))
