"""The heartbeat: beats on a connection of its own, names what is held, and bears witness of lost connections."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connections, transaction

from outbox.brokers.memory import MemoryBroker
from outbox.coordination.heartbeat import Heartbeat, NullHeartbeat
from outbox.coordination.leases import CONSUMER, RELAY, Presence, ShardLeases
from outbox.coordination.shutdown import StopFlag
from outbox.fields import SHARD_COUNT
from outbox.models import ServiceSwitch, Worker
from outbox.storage.pause_flags import Switches
from tests import factories
from tests.factories import database_now
from tests.proxied import proxied
from tests.threads import Threads
from tests.toys import SERVICE, RecordingStop, Toys
from tests.transactions import connection_id_of, held_elsewhere, second_connection
from tests.waiting import wait_until

BRISK = timedelta(milliseconds=50)
RARE = timedelta(hours=1)
ANSWER = timedelta(seconds=1)
WORKER = "consumer-under-test"

Open = Callable[..., Heartbeat]

on_servers = pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)


@pytest.fixture
def heartbeat(alias: str) -> Iterator[Open]:
    """Return a function that starts a heartbeat, closed after the test."""
    opened: list[Heartbeat] = []

    def start(*, interval: timedelta = RARE, answer_timeout: timedelta = ANSWER) -> Heartbeat:
        presence = Presence(service=SERVICE, role=CONSUMER, worker_id=WORKER, using=alias, ttl=timedelta(seconds=60))
        beating = Heartbeat(presence, interval=interval, answer_timeout=answer_timeout)
        opened.append(beating)
        beating.start()
        return beating

    yield start
    for each in opened:
        each.close()


def test_row_is_there_and_switches_are_known_when_it_has_started(alias: str, heartbeat: Open) -> None:
    ServiceSwitch.objects.using(alias).create(service=SERVICE, consumer_paused=True)

    started = heartbeat()

    assert _row(alias).role == CONSUMER
    assert started.switches == Switches(consumer_paused=True)


def test_row_is_renewed_and_switches_follow_while_the_worker_is_at_work(alias: str, heartbeat: Open) -> None:
    started = heartbeat(interval=BRISK)
    first = _row(alias).seen_at
    ServiceSwitch.objects.using(alias).create(service=SERVICE, consumer_paused=True)

    wait_until(lambda: _row(alias).seen_at > first)
    wait_until(lambda: started.switches.consumer_paused)


def test_relay_beats_on_a_timer_and_not_with_its_steps(alias: str, toys: Toys) -> None:
    """However often it looks at its leases, and however seldom."""
    beats: list[tuple[int, float]] = []

    class _Counted(Presence):
        def beat(self) -> Switches:
            beats.append((threading.get_ident(), time.monotonic()))
            return super().beat()

    interval_s = 0.5
    presence = _Counted(service=SERVICE, role=RELAY, worker_id=WORKER, using=alias, ttl=timedelta(seconds=60))
    leases = ShardLeases(presence, heartbeat=timedelta(0), clock=time.monotonic)
    relay = factories.relay(
        alias,
        MemoryBroker(),
        toys,
        time.monotonic,
        worker_leases=leases,
        heartbeat=Heartbeat(presence, interval=timedelta(seconds=interval_s), renew=leases.renew),
        poll_interval_ms=5,
        max_poll_interval_ms=5,
    )
    stop, threads = StopFlag(), Threads()
    own = threads.start(lambda: relay.run(stop))
    try:
        wait_until(lambda: len(beats) >= 5, timeout=60)
        assert leases.held == frozenset(range(SHARD_COUNT))
    finally:
        stop.set()
        wait_until(threads.are_all_over, timeout=60)
    threads.check_no_errors()
    assert own.ident not in {thread for thread, _ in beats}
    assert min(later - earlier for (_, earlier), (_, later) in pairwise(beats)) >= interval_s


def test_paused_relay_sends_nothing_though_its_first_beat_was_lost(
    alias: str, toys: Toys, broker: MemoryBroker, stop: RecordingStop
) -> None:
    """The database comes back between the start and the first step: what a person has set is asked for before it."""
    ServiceSwitch.objects.using(alias).create(service=SERVICE, relay_paused=True)
    factories.rows(alias, 3)
    losses = iter([OperationalError("disk I/O error")])

    class _LostOnce(Presence):
        def beat(self) -> Switches:
            for loss in losses:
                raise loss
            return super().beat()

    presence = _LostOnce(service=SERVICE, role=RELAY, worker_id=WORKER, using=alias, ttl=timedelta(seconds=60))
    leases = ShardLeases(presence, heartbeat=timedelta(seconds=2), clock=time.monotonic)
    beating = Heartbeat(presence, interval=RARE, answer_timeout=ANSWER)
    relay = factories.relay(alias, broker, toys, time.monotonic, worker_leases=leases, heartbeat=beating)

    assert relay.run(stop, once=True).published == 0
    assert beating.switches.relay_paused


def test_heartbeat_alone_keeps_its_interval(alias: str) -> None:
    beats: list[float] = []

    class _Timed(Presence):
        def beat(self) -> Switches:
            beats.append(time.monotonic())
            return super().beat()

    interval_s = 1.0
    presence = _Timed(service=SERVICE, role=CONSUMER, worker_id=WORKER, using=alias, ttl=timedelta(seconds=60))
    started = Heartbeat(presence, interval=timedelta(seconds=interval_s), answer_timeout=ANSWER)
    started.start()
    try:
        wait_until(lambda: len(beats) >= 6, timeout=60)
    finally:
        started.close()
    shortest = min(later - earlier for earlier, later in pairwise(beats))
    assert interval_s <= shortest < 1.2 * interval_s, "the shortest: a busy machine may make any of them longer"


def test_row_says_when_the_loop_last_moved(alias: str, heartbeat: Open) -> None:
    started = heartbeat(interval=BRISK)
    first = _row(alias)
    assert first.moved_at is not None

    def has_not_moved_for(row: Worker) -> timedelta:
        assert row.moved_at is not None
        return row.seen_at - row.moved_at

    wait_until(lambda: has_not_moved_for(_row(alias)) > 4 * BRISK, message="it is seen, and does not move")

    started.moved()
    wait_until(lambda: _row(alias).moved_at > first.moved_at + 3 * BRISK)


def test_row_names_what_is_held_as_soon_as_hold_returns(alias: str, heartbeat: Open) -> None:
    started = heartbeat()

    started.hold([0, 1, 2, 7])
    assert _row(alias).partitions == "0-2,7"
    started.hold([])
    assert _row(alias).partitions == ""


def test_row_that_somebody_deleted_comes_back_with_what_is_held(alias: str, heartbeat: Open) -> None:
    started = heartbeat(interval=BRISK)
    started.hold([3])
    Worker.objects.using(alias).all().delete()

    wait_until(lambda: Worker.objects.using(alias).filter(pk=WORKER, partitions="3").exists())


def test_close_deregisters_and_ends_the_connection(alias: str, heartbeat: Open) -> None:
    started = heartbeat()
    started.hold([1])

    started.close()
    started.close()  # a second time is harmless

    assert not Worker.objects.using(alias).exists()
    assert started.token() is None


def test_no_beat_that_is_due_brings_a_deregistered_row_back(alias: str, heartbeat: Open) -> None:
    for _ in range(20):
        heartbeat(interval=timedelta(milliseconds=1)).close()
        assert not Worker.objects.using(alias).exists()


def test_close_may_leave_the_row(alias: str, heartbeat: Open) -> None:
    started = heartbeat()
    started.hold([1])

    started.close(deregister=False)

    assert _row(alias).partitions == "1"


def test_dead_workers_that_name_partitions_are_kept_for_a_week(alias: str, heartbeat: Open) -> None:
    now = database_now(alias)
    ages = {"an hour": timedelta(hours=2), "a week": timedelta(days=8)}
    for name, age in ages.items():
        for partitions in ("", "4"):
            _dead_row(alias, f"{name} {partitions}", seen_at=now - age, partitions=partitions)

    heartbeat()

    left = set(Worker.objects.using(alias).exclude(pk=WORKER).values_list("worker_id", flat=True))
    assert left == {"an hour 4"}


# --- the witness -------------------------------------------------------------------------------------------------


@on_servers
def test_witness_lives_on_when_only_the_workers_connection_is_lost(alias: str, heartbeat: Open) -> None:
    started = heartbeat()
    token = started.token()
    assert token is not None

    _kill(alias, connection_id_of(alias))

    assert started.lived_on(token)
    assert started.token() is token
    connections[alias].close()


@on_servers
def test_witness_that_was_lost_too_did_not_live_on_however_soon_it_is_back(alias: str, heartbeat: Open) -> None:
    started = heartbeat(interval=BRISK)
    token = started.token()

    for each in _others(alias):
        _kill(alias, each)

    wait_until(lambda: started.token() not in (None, token))
    assert not started.lived_on(token)
    assert started.lived_on(started.token())
    assert not started.lived_on(None)


@on_servers
def test_witness_does_not_connect_anew_to_answer(alias: str, heartbeat: Open) -> None:
    started = heartbeat()
    token = started.token()
    for each in _others(alias):
        _kill(alias, each)

    assert not started.lived_on(token)
    assert started.token() is None
    started.hold([1])
    assert started.token() not in (None, token)


@on_servers
def test_frozen_database_is_no_witness_and_stops_nobody(
    alias: str, heartbeat: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(alias, monkeypatch) as proxy:
        started = heartbeat()
        token = started.token()
        proxy.hold()

        began = time.monotonic()
        assert not started.lived_on(token)
        with pytest.raises(OperationalError):
            started.hold([1])
        started.close()
        assert time.monotonic() - began < 3 * ANSWER.total_seconds() + 2

        proxy.heal(cut=True)


@on_servers
def test_database_that_is_back_finds_the_heartbeat_going_on(
    alias: str, heartbeat: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "outbox.coordination.heartbeat_thread")
    with proxied(alias, monkeypatch) as proxy:
        started = heartbeat(interval=BRISK)
        proxy.hold()
        proxy.cut()
        wait_until(lambda: started.token() is None)
        with pytest.raises(DatabaseError):
            started.hold([5])

        proxy.heal(cut=True)

        wait_until(lambda: Worker.objects.using(alias).filter(partitions="5").exists())
        wait_until(lambda: started.token() is not None)
        started.close()
    said = [record.message.split(":")[0] for record in caplog.records]
    assert said == ["heartbeat failed, retrying", "heartbeat resumed"]


@on_servers
def test_strangers_lock_on_the_row_costs_a_beat_and_not_the_witness(alias: str, heartbeat: Open) -> None:
    started = heartbeat(answer_timeout=timedelta(seconds=5))
    token = started.token()

    with held_elsewhere(alias, lambda: list(Worker.objects.using(alias).select_for_update().all())):
        with pytest.raises(DatabaseError):
            started.hold([1])
        assert started.lived_on(token)
    started.hold([1])
    assert started.token() is token
    assert _row(alias).partitions == "1"


@pytest.mark.parametrize("database_alias", ["default"], indirect=True)
def test_writer_of_sqlite_is_waited_for_briefly_and_never_disturbed(alias: str, heartbeat: Open) -> None:
    started = heartbeat(interval=BRISK, answer_timeout=timedelta(seconds=5))
    first = _row(alias).seen_at

    with transaction.atomic(using=alias):
        Worker.objects.using(alias).update(host="writer")
        began = time.monotonic()
        with pytest.raises(OperationalError, match="locked"):
            started.hold([1])
        assert time.monotonic() - began < 4
        Worker.objects.using(alias).update(host="writer still")

    wait_until(lambda: _row(alias).seen_at > first)
    assert (_row(alias).host, _row(alias).partitions) == ("writer still", "1")
    assert started.token() is None
    assert not started.lived_on(object())


def test_null_heartbeat_has_the_switches_it_is_given_and_no_witness() -> None:
    null = NullHeartbeat(Switches(consumer_paused=True))
    null.start()
    null.hold([1])

    assert null.switches.consumer_paused
    assert null.token() is None
    assert not null.lived_on(object())
    assert null.silent_s(0.0) == 0.0
    null.close()


def _row(alias: str) -> Worker:
    return Worker.objects.using(alias).get(pk=WORKER)


def _dead_row(alias: str, worker_id: str, **columns: Any) -> None:
    Worker.objects.using(alias).create(
        worker_id=worker_id, service=SERVICE, role=CONSUMER, host="host", pid=1, **columns
    )


def _others(alias: str) -> list[int]:
    """Return the server's names of all other connections to this test's database."""
    connection = connections[alias]
    statement = {
        "mysql": "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
        "postgresql": (
            "SELECT pid FROM pg_stat_activity WHERE datname = CURRENT_DATABASE() AND pid <> PG_BACKEND_PID()"
            " AND backend_type = 'client backend'"
        ),
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return [row[0] for row in cursor.fetchall()]


def _kill(alias: str, connection_id: int) -> None:
    killer = second_connection(alias)
    with killer.cursor() as cursor:
        if killer.vendor == "mysql":
            cursor.execute(f"KILL {connection_id}")
        else:
            cursor.execute("SELECT PG_TERMINATE_BACKEND(%s)", [connection_id])
    killer.close()
