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


def test_member_says_which_partitions_it_has_and_since_which_assignment(harness: BrokerHarness) -> None:
    harness.need("members")
    route = harness.ready_route(partitions=4)
    publish(harness, records(route, 40, keys=40))
    first = harness.broker.subscribe(route, client_id="contract-1")
    received = receive_exactly(first, 40, commit=True)
    alone = dict(first.assignments)
    assert {record.partition for record in received} <= alone.keys()
    assert len(set(alone.values())) == len(alone)

    other = harness.broker.subscribe(route, client_id="contract-2")

    def halves() -> bool:
        for member in (first, other):
            member.commit(member.receive(max_records=10, timeout=RECEIVE_TIMEOUT))
        return len(first.assignments) == len(other.assignments) == len(alone) // 2

    wait_until(halves, timeout=harness.takeover_timeout_s, interval=0)
    assert not first.assignments.keys() & other.assignments.keys()
    assert first.assignments.items() <= alone.items(), "what stayed has its number still"
    other.close()
    assert other.assignments == {}

    def whole() -> bool:
        first.receive(max_records=10, timeout=RECEIVE_TIMEOUT)
        return first.assignments.keys() == alone.keys()

    wait_until(whole, timeout=harness.takeover_timeout_s, interval=0)
    anew = dict(first.assignments.items() - alone.items())
    assert len(anew) == len(alone) // 2
    assert min(anew.values()) > max(alone.values())
    first.close()


def test_partition_does_not_wait_for_records_that_were_handed_back(harness: BrokerHarness) -> None:
    harness.need("members", "offsets")
    route = harness.ready_route(partitions=4)
    publish(harness, records(route, 40, keys=40))
    first = harness.broker.subscribe(route, client_id="contract-1")
    in_hand = receive_exactly(first, 40)

    first.hand_back(in_hand)
    newcomer = Member(harness, route, client_id="contract-2")

    def moved() -> set[int]:
        first.receive(max_records=10, timeout=RECEIVE_TIMEOUT)
        left = {record.partition for record in in_hand} - first.assignments.keys()
        theirs = {record.partition for record in newcomer.received}
        return theirs if len(left) == 2 and left <= theirs else set()

    moved_on = wait_until(moved, timeout=15, interval=0)
    due = {record.offset for record in in_hand if record.partition in moved_on}
    wait_until(lambda: {record.offset for record in newcomer.received} >= due, timeout=harness.takeover_timeout_s)
    newcomer.leave()
    first.close()


def test_handed_back_records_come_again_to_the_next_owner_only(harness: BrokerHarness) -> None:
    harness.need("offsets", "redelivery")
    route = harness.ready_route(partitions=1)
    publish(harness, records(route, 10))
    first = harness.broker.subscribe(route, client_id="contract-1")
    received = receive_exactly(first, 10)
    first.commit(received[:4])
    first.hand_back(received[4:])
    assert first.receive(max_records=10, timeout=RECEIVE_TIMEOUT) == []
    first.close()

    second = harness.broker.subscribe(route, client_id="contract-2")

    assert ids(receive_exactly(second, 6)) == list(range(5, 11))
    second.close()
