"""Relays share the shards: no two hold the same, and what a crashed one held is taken over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connections

from outbox.brokers.base import OutgoingRecord, SendReport
from outbox.brokers.memory import MemoryBroker
from outbox.coordination.heartbeat import Heartbeat
from outbox.coordination.leases import CONSUMER, ShardLeases
from outbox.coordination.progress import Progress
from outbox.coordination.shutdown import StopFlag
from outbox.fields import SHARD_COUNT, UtcNow
from outbox.models import ShardLease, Worker
from tests import factories
from tests.factories import database_now, get, make_due, rows, status_counts, statuses
from tests.relays import MakeRelay, make_relay_after, sent_ids, step_until_idle
from tests.threads import Threads
from tests.toys import ManualClock, RecordingStop, Toys, effect_ids
from tests.waiting import wait_until

HOUR = timedelta(hours=1)
HALF = factories.TTL / 2


def shards_by_owner(alias: str, *, alive: bool = False) -> dict[str, int]:
    counts: dict[str, int] = {}
    leases = ShardLease.objects.using(alias)
    for owner in (leases.filter(expires_at__gt=UtcNow()) if alive else leases).values_list("owner", flat=True):
        counts[owner] = counts.get(owner, 0) + 1
    return counts


def settle(clock: ManualClock, *workers: ShardLeases) -> None:
    for _ in range(3):
        clock.advance(factories.HEARTBEAT.total_seconds())
        for worker in workers:
            worker.refresh()


def test_one_worker_takes_every_shard(alias: str, clock: ManualClock) -> None:
    alone = factories.leases(alias, clock)

    assert alone.due
    assert alone.refresh() == frozenset(range(SHARD_COUNT))
    assert not alone.due


@pytest.mark.parametrize("count", [2, 3, 5])
def test_workers_settle_to_equal_shares_without_overlap(alias: str, clock: ManualClock, count: int) -> None:
    workers = [factories.leases(alias, clock) for _ in range(count)]

    settle(clock, *workers)

    held = [worker.held for worker in workers]
    assert frozenset.union(*held) == frozenset(range(SHARD_COUNT))
    assert sum(len(each) for each in held) == SHARD_COUNT
    assert max(len(each) for each in held) - min(len(each) for each in held) <= 1


def test_heartbeat_renews_leases_while_the_loop_moves(alias: str, clock: ManualClock) -> None:
    """A relay may wait for its broker for long; what hangs must give its shards to others (promise 9)."""
    worker = factories.leases(alias, clock)
    worker.presence.progress = Progress(clock)
    worker.refresh()

    def is_renewed() -> bool:
        ShardLease.objects.using(alias).update(expires_at=database_now(alias))
        worker.renew()
        return bool(ShardLease.objects.using(alias).filter(expires_at__gt=database_now(alias) + HALF).count())

    assert is_renewed()
    clock.advance(HALF.total_seconds())
    assert is_renewed()
    clock.advance(1)
    assert not is_renewed()
    worker.presence.progress.moved()
    assert is_renewed()


def test_share_of_a_relay_that_hangs_goes_to_the_others(alias: str, clock: ManualClock) -> None:
    hangs, works = factories.leases(alias, clock), factories.leases(alias, clock)
    hangs.presence.progress = Progress(clock)
    settle(clock, hangs, works)
    assert shards_by_owner(alias) == {each.presence.worker_id: SHARD_COUNT // 2 for each in (hangs, works)}

    clock.advance(factories.TTL.total_seconds() + 1)
    hangs.presence.beat()
    hangs.renew()
    ShardLease.objects.using(alias).filter(owner=hangs.presence.worker_id).update(expires_at=database_now(alias))
    works.refresh()

    assert shards_by_owner(alias) == {works.presence.worker_id: SHARD_COUNT}
    settle(clock, works, hangs)
    assert len(hangs.held) == SHARD_COUNT // 2, "it moves again"


def test_heartbeat_renews_nothing_that_another_worker_has_taken(alias: str, clock: ManualClock) -> None:
    late, other = factories.leases(alias, clock), factories.leases(alias, clock)
    late.refresh()
    factories.expire(alias, late.presence.worker_id)
    other.refresh()

    late.renew()

    assert shards_by_owner(alias) == {other.presence.worker_id: SHARD_COUNT}


class _Silent(MemoryBroker):
    """A broker that takes records and does not answer before it is let."""

    def __init__(self) -> None:
        super().__init__(partitions=3)
        self.is_asked, self.answers = threading.Event(), threading.Event()

    def producer(self, *, client_id: str) -> Any:
        producer = super().producer(client_id=client_id)
        return SimpleNamespace(send=lambda records: _Unanswered(self, producer.send(records)), close=producer.close)


class _Unanswered:
    def __init__(self, broker: _Silent, send: Any) -> None:
        self._broker, self._send = broker, send

    def report(self, timeout: timedelta) -> SendReport:
        self._broker.is_asked.set()
        assert self._broker.answers.wait(30)
        report: SendReport = self._send.report(timeout)
        return report


def test_relay_that_waits_for_its_broker_is_seen_and_keeps_its_shards(
    alias: str, toys: Toys, clock: ManualClock
) -> None:
    rows(alias, 3)
    broker, stop = _Silent(), StopFlag()
    leases = factories.leases(alias, clock)
    beating = Heartbeat(leases.presence, interval=timedelta(milliseconds=20), renew=leases.renew)
    relay = factories.relay(alias, broker, toys, clock, worker_leases=leases, heartbeat=beating)

    threads = Threads()
    threads.start(lambda: relay.run(stop))
    try:
        assert broker.is_asked.wait(30)
        factories.expire(alias, leases.presence.worker_id)
        wait_until(lambda: leases.presence.worker_id in factories.leases(alias, clock).presence.alive())
        wait_until(lambda: shards_by_owner(alias, alive=True) == {leases.presence.worker_id: SHARD_COUNT})
    finally:
        stop.set()
        broker.answers.set()
        wait_until(threads.are_all_over)
    threads.check_no_errors()

    assert not Worker.objects.using(alias).exists()
    assert shards_by_owner(alias) == {"": SHARD_COUNT}
    assert set(statuses(alias).values()) == {"published"}


def test_worker_that_leaves_frees_its_share_at_once(alias: str, clock: ManualClock) -> None:
    stays, leaves = factories.leases(alias, clock), factories.leases(alias, clock)
    settle(clock, stays, leaves)

    leaves.release()
    clock.advance(10)

    assert stays.refresh() == frozenset(range(SHARD_COUNT))
    assert leaves.held == frozenset()
    assert Worker.objects.using(alias).count() == 1


def test_lease_is_renewed_on_every_beat(alias: str, clock: ManualClock) -> None:
    worker = factories.leases(alias, clock)
    worker.refresh()
    almost_over = database_now(alias) + timedelta(seconds=1)
    ShardLease.objects.using(alias).update(expires_at=almost_over)

    worker.refresh()

    soonest = min(ShardLease.objects.using(alias).values_list("expires_at", flat=True))
    assert soonest > almost_over + factories.TTL / 2


def test_share_of_a_crashed_worker_is_free_when_its_lease_runs_out(alias: str, clock: ManualClock) -> None:
    stays, crashes = factories.leases(alias, clock), factories.leases(alias, clock)
    settle(clock, stays, crashes)
    half = stays.held

    clock.advance(10)
    assert stays.refresh() == half, "not before its time"
    factories.expire(alias, crashes.presence.worker_id)
    clock.advance(10)

    assert stays.refresh() == frozenset(range(SHARD_COUNT))


def test_shard_that_another_takes_in_the_same_moment_is_not_held_twice(alias: str, clock: ManualClock) -> None:
    first, slow, quick = (factories.leases(alias, clock) for _ in range(3))
    first.refresh()
    first.release()
    overtaken: list[str] = []

    def overtake(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith("UPDATE") and " IN (" in sql and not overtaken:  # it has looked at what is free, and takes it
            overtaken.append(sql)
            quick.refresh()
        return execute(sql, *rest)

    with connections[alias].execute_wrapper(overtake):
        slow.refresh()

    assert overtaken
    assert len(quick.held) == SHARD_COUNT // 2
    assert not slow.held & quick.held
    assert slow.held | quick.held == frozenset(range(SHARD_COUNT))


def test_refresh_that_fails_in_its_middle_leaves_nothing_to_be_believed(
    alias: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker lost a shard and took another: it holds as many as before, and not the same ones."""
    worker, other = factories.leases(alias, clock), factories.leases(alias, clock)
    settle(clock, worker, other)
    lost, gained = min(worker.held), min(other.held)
    ShardLease.objects.using(alias).filter(shard=lost).update(owner=other.presence.worker_id)
    ShardLease.objects.using(alias).filter(shard=gained).update(owner="")
    before, real, answers = worker.held, worker._held, iter([True, False])

    def fails_after_taking() -> frozenset[int]:
        if not next(answers, True):
            raise ConnectionError
        return real()

    monkeypatch.setattr(worker, "_held", fails_after_taking)
    with pytest.raises(ConnectionError):
        worker.refresh()

    assert worker.refresh() == before - {lost} | {gained}


def test_worker_that_slept_through_its_lease_takes_nothing_back(alias: str, clock: ManualClock) -> None:
    sleeper, other = factories.leases(alias, clock), factories.leases(alias, clock)
    sleeper.refresh()
    factories.expire(alias, sleeper.presence.worker_id)
    other.refresh()
    assert other.held == frozenset(range(SHARD_COUNT))

    assert sleeper.refresh() == frozenset(), "everything is held by somebody who is alive"
    settle(clock, other, sleeper)
    assert not sleeper.held & other.held
    assert len(sleeper.held) == len(other.held) == SHARD_COUNT // 2


def test_leases_expire_by_the_clock_of_the_database(alias: str, clock: ManualClock) -> None:
    """The real time-to-live, without a hand on the rows: free after the time and not before."""
    from outbox.coordination.leases import RELAY, Presence

    brief = timedelta(milliseconds=300)
    crashed, heir = (
        ShardLeases(
            Presence(service="agent", role=RELAY, worker_id=name, using=alias, ttl=brief),
            heartbeat=timedelta(0),
            clock=clock,
        )
        for name in ("crashed", "heir")
    )
    crashed.refresh()
    expires_at = max(ShardLease.objects.using(alias).values_list("expires_at", flat=True))

    wait_until(lambda: heir.refresh() == frozenset(range(SHARD_COUNT)), timeout=10)

    assert database_now(alias) >= expires_at


def test_services_and_roles_do_not_share_leases(alias: str, clock: ManualClock) -> None:
    relay, consumer = factories.leases(alias, clock), factories.leases(alias, clock, role=f"{CONSUMER}-shards")

    assert relay.refresh() == consumer.refresh() == frozenset(range(SHARD_COUNT))


def test_workers_of_an_hour_ago_are_forgotten(alias: str, clock: ManualClock) -> None:
    old = factories.leases(alias, clock)
    old.refresh()
    Worker.objects.using(alias).update(seen_at=database_now(alias) - 2 * HOUR)

    factories.leases(alias, clock).refresh()

    assert Worker.objects.using(alias).count() == 1


def test_two_relays_share_the_rows_and_send_each_once(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock
) -> None:
    relays = [make_relay(batch_size=3), make_relay(batch_size=3)]
    for _ in range(3):
        for relay in relays:
            relay.step()
        clock.advance(10)
    ids = rows(alias, 60, key=lambda number: f"key-{number}")

    for _ in range(60):
        for relay in relays:
            relay.step()

    assert sorted(sent_ids(broker)) == ids
    assert all(relay.totals.published > 10 for relay in relays)
    assert status_counts(alias) == {"published": 60}


def test_rows_of_a_crashed_relay_are_taken_over(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock
) -> None:
    crashed, heir = make_relay(), make_relay()
    for _ in range(3):
        crashed.step()
        heir.step()
        clock.advance(10)
    ids = rows(alias, 40, key=lambda number: f"key-{number}")
    step_until_idle(heir)
    assert len(sent_ids(broker)) < 40

    factories.expire(alias, crashed._leases.presence.worker_id)
    clock.advance(10)
    step_until_idle(heir)

    assert sorted(sent_ids(broker)) == ids


def test_relay_that_slept_through_its_lease_duplicates_at_the_most(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, toys: Toys, clock: ManualClock
) -> None:
    ids = rows(alias, 6)
    sleeper = make_relay(batch_size=3)
    sleeper.step()
    heir = make_relay_after(sleeper, make_relay)
    step_until_idle(heir)
    consumer = factories.consumer(alias, toys, broker=broker)
    toys.fail(ids[0], ValueError("not yet"), times=1)
    consumer.step(100)
    before = {each: (get(alias, each).status, get(alias, each).next_retry_at) for each in ids}

    clock.advance(10)
    step_until_idle(sleeper)

    after = {each: (get(alias, each).status, get(alias, each).next_retry_at) for each in ids}
    assert after == before, "what its consumer put back after the claim is not overwritten"
    make_due(alias)
    for relay in (heir, sleeper):
        clock.advance(10)
        step_until_idle(relay)
    consumer.step(100)
    assert effect_ids(alias) == ids


class _Slow(MemoryBroker):
    """Takes its time to answer; ``meanwhile`` is what happens in it."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__(partitions=3)
        self.meanwhile = meanwhile

    def producer(self, *, client_id: str) -> Any:
        return _SlowProducer(self, super().producer(client_id=client_id))


class _SlowProducer:
    def __init__(self, broker: _Slow, producer: Any) -> None:
        self._broker, self._producer = broker, producer

    def send(self, records: Sequence[OutgoingRecord]) -> Any:
        sent = self._producer.send(records)
        broker = self._broker

        class _Late:
            def report(self, timeout: timedelta) -> SendReport:
                broker.meanwhile()
                return sent.report(timeout)

        return _Late()

    def close(self) -> None:
        self._producer.close()


def test_relay_looks_at_its_leases_after_a_slow_answer_before_it_claims_more(
    alias: str, make_relay: MakeRelay, clock: ManualClock
) -> None:
    ids = rows(alias, 4, key=lambda number: f"key-{number}")
    heir = factories.leases(alias, clock)

    def meanwhile() -> None:
        clock.advance(factories.TTL.total_seconds())
        factories.expire(alias, relay._leases.presence.worker_id)
        heir.refresh()

    broker = _Slow(meanwhile)
    relay = make_relay(broker=broker, batch_size=2, in_flight_batches=1)
    relay.step()

    assert relay.step(), "the answer came, and there is more to do"
    assert not relay.step(), "but not for this one"
    assert sorted(sent_ids(broker)) == ids[:2]
    assert status_counts(alias) == {"published": 2, "pending": 2}


def test_relay_that_ends_marks_what_was_acknowledged_and_frees_its_leases(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, stop: RecordingStop, toys: Toys
) -> None:
    ids = rows(alias, 4)
    relay = make_relay(batch_size=2, in_flight_batches=5)
    relay.step()
    assert status_counts(alias) == {"pending": 4}
    stop.set()

    relay.run(stop)

    assert [statuses(alias)[each] for each in ids] == ["published", "published", "pending", "pending"]
    assert shards_by_owner(alias) == {"": SHARD_COUNT}
    assert not Worker.objects.using(alias).exists()


def test_lease_taken_anew_is_a_new_assignment(alias: str, clock: ManualClock) -> None:
    sleeper, other = factories.leases(alias, clock), factories.leases(alias, clock)
    sleeper.refresh()
    first = dict(sleeper.assignments)
    assert first.keys() == sleeper.held
    sleeper.refresh()
    assert sleeper.assignments == first

    factories.expire(alias, sleeper.presence.worker_id)
    other.refresh()
    other.release()
    sleeper.refresh()

    assert sleeper.held == first.keys(), "all of them were somebody else's meanwhile"
    assert min(sleeper.assignments.values()) > max(first.values())
    sleeper.release()
    assert sleeper.assignments == {}
