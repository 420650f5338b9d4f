"""Connections that a transaction or a handler left unusable: nothing of a later event may be done on them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction

from outbox import Delivery
from outbox.brokers.memory import MemoryBroker
from outbox.consumer.loop import Consumer
from outbox.coordination.heartbeat import Heartbeat
from outbox.coordination.leases import CONSUMER, Presence
from outbox.fields import SHARD_COUNT
from outbox.models import Worker
from outbox.storage import sessions
from tests import factories
from tests.consumers import deliver, published
from tests.factories import TABLE, get, statuses
from tests.relays import MakeRelay, sent_ids, step_until_idle
from tests.toys import SERVICE, ManualClock, Toys, effect_ids
from tests.transactions import connection_id_of, kill_own_connection, second_connection
from tests.waiting import wait_until

KILLED = OperationalError(1317, "Query execution was interrupted")


@pytest.fixture
def consumer(alias: str, toys: Toys) -> Consumer:
    return factories.consumer(alias, toys)


def see_to_the_end(alias: str, consumer: Consumer, row_ids: Sequence[int]) -> None:
    """Deliver until everything is consumed, as the loop of a consumer does: over a new connection behind an error."""
    for _ in range(20):
        try:
            deliver(alias, consumer, row_ids)
        except OperationalError:
            connections[alias].close()
        factories.make_due(alias)
        if {statuses(alias)[each] for each in row_ids} == {"consumed"}:
            return
    raise AssertionError(statuses(alias))


def seen_by_others(alias: str) -> int:
    """Return how many rows are consumed for everybody."""
    other = second_connection(alias)
    with other.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM {TABLE} WHERE status = 'consumed'")
        count = int(cursor.fetchone()[0])
    other.close()
    return count


def beats_seen_by_others(alias: str) -> int:
    """Return how many workers have been seen since their rows were made long ago, for everybody."""
    other = second_connection(alias)
    with other.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM outbox_workers WHERE seen_at > '2020-01-01'")
        count = int(cursor.fetchone()[0])
    other.close()
    return count


# --- no autocommit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)
@pytest.mark.parametrize("failure", [None, ValueError("not yet")])
@pytest.mark.parametrize("killed", range(4))
def test_transaction_whose_end_is_cut_short_leaves_no_connection_that_commits_nothing(
    alias: str,
    consumer: Consumer,
    toys: Toys,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception | None,
    killed: int,
) -> None:
    """``KILL QUERY`` meets the ``SET autocommit=1`` behind a commit or a rollback."""
    row_ids = published(alias, 4, key=lambda number: f"k{number}")
    if failure is not None:
        toys.fail(row_ids[1], failure, times=1)
    connection = connections[alias]
    goes_back = connection._set_autocommit
    seen = []

    def be_killed(autocommit: bool) -> None:
        if autocommit and connection.connection is not None:
            seen.append(connection.connection)
            if len(seen) == killed + 1:
                raise KILLED
        goes_back(autocommit)

    deliver(alias, consumer, [])  # so that it is connected
    with monkeypatch.context() as patch:
        patch.setattr(connection, "_set_autocommit", be_killed)
        see_to_the_end(alias, consumer, row_ids)

    assert seen_by_others(alias) == len(row_ids)
    assert sorted(effect_ids(alias)) == row_ids
    assert get(alias, row_ids[0]).retry_count == 0


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)
@pytest.mark.parametrize("step", ["_set_autocommit", "init_connection_state"])
def test_connection_whose_making_is_cut_short_is_not_worked_on(
    alias: str, consumer: Consumer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    row_ids = published(alias, 2, key=lambda number: f"k{number}")
    connection = connections[alias]
    whole, killed = getattr(connection, step), []

    def be_killed(*args: Any) -> None:
        if not killed:
            killed.append(connection.connection)
            raise KILLED
        whole(*args)

    with monkeypatch.context() as patch:
        connection.close()
        patch.setattr(connection, step, be_killed)
        with suppress(OperationalError):
            consumer.handle(factories.records_of(alias, row_ids))
        see_to_the_end(alias, consumer, row_ids)

    assert connection.connection is not killed[0]
    assert seen_by_others(alias) == len(row_ids)


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)
def test_heartbeat_whose_connection_was_made_in_part_connects_anew(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def be_killed(connection: Any, autocommit: bool) -> None:
        if connection.alias == alias and threading.current_thread().name.endswith("heartbeat"):
            monkeypatch.undo()
            raise KILLED
        connection.connection.autocommit(autocommit)

    monkeypatch.setattr(type(connections[alias]), "_set_autocommit", be_killed)
    long_ago = datetime(2000, 1, 1, tzinfo=UTC)
    Worker.objects.using(alias).create(
        worker_id="w", service=SERVICE, role=CONSUMER, host="h", pid=1, seen_at=long_ago, moved_at=long_ago
    )
    presence = Presence(service=SERVICE, role=CONSUMER, worker_id="w", using=alias, ttl=timedelta(seconds=60))
    beating = Heartbeat(presence, interval=timedelta(milliseconds=50))
    beating.start()
    try:
        wait_until(lambda: beats_seen_by_others(alias) == 1)
    finally:
        beating.close()


class _Killer(threading.Thread):
    """Kills whatever statement a session is at, again and again, while there is a target."""

    def __init__(self, alias: str) -> None:
        super().__init__(daemon=True)
        self._alias = alias
        self._mutex = threading.Lock()
        self._target = 0
        self._over = threading.Event()

    def aim(self, session_id: int) -> None:
        with self._mutex:
            self._target = session_id

    def end(self) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        connection = second_connection(self._alias)
        kill = "KILL QUERY %s" if connection.vendor == "mysql" else "SELECT PG_CANCEL_BACKEND(%s)"
        with connection.cursor() as cursor:
            while not self._over.wait(0.0005):
                with self._mutex:
                    if self._target:
                        with suppress(OperationalError):  # it has ended
                            cursor.execute(kill, [self._target])
        connection.close()


@pytest.mark.parametrize("database_alias", ["mariadb"], indirect=True)
def test_statements_that_are_killed_at_any_moment_cost_no_commit(
    alias: str, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    close = sessions.close_incomplete

    def look(connection: Any) -> None:
        driver = connection.connection
        close(connection)
        if driver is not None and connection.connection is None:
            closed.append(driver)

    monkeypatch.setattr(sessions, "close_incomplete", look)
    killer = _Killer(alias)
    killer.start()
    try:
        done, deadline = 0, time.monotonic() + 90
        while len(closed) < 2:
            assert time.monotonic() < deadline, "no kill met the end of a transaction"
            records = factories.records_of(alias, published(alias, 1, key=f"k{done}"))
            killer.aim(connection_id_of(alias))
            try:
                consumer.handle(records)
            except OperationalError:
                connections[alias].close()
            finally:
                killer.aim(0)
            see_to_the_end(alias, consumer, [max(statuses(alias))])
            done += 1
            assert seen_by_others(alias) == done
    finally:
        killer.end()


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_batches_whose_statements_are_killed_take_effect_once_and_in_the_order_of_their_keys(
    alias: str, consumer: Consumer, toys: Toys
) -> None:
    row_ids = published(alias, 120, key=lambda number: f"k{number % 6}")
    for row_id in row_ids[::7]:
        toys.fail(row_id, ValueError("not yet"), times=1)
    killer = _Killer(alias)
    killer.start()
    try:
        for first in range(0, len(row_ids), 12):
            records = factories.records_of(alias, row_ids[first : first + 12])
            killer.aim(connection_id_of(alias))
            with suppress(OperationalError):
                consumer.handle(records)
            killer.aim(0)
            connections[alias].close()
    finally:
        killer.end()
    see_to_the_end(alias, consumer, row_ids)

    assert sorted(effect_ids(alias)) == row_ids
    for number in range(6):
        assert effect_ids(alias, key=f"k{number}") == row_ids[number::6]


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_relay_whose_statements_are_killed_sends_everything_in_order_and_keeps_its_leases(
    alias: str, broker: MemoryBroker, make_relay: MakeRelay, clock: ManualClock
) -> None:
    row_ids = factories.rows(alias, 120, key=lambda number: f"k{number % 6}")
    relay = make_relay(batch_size=10)
    killer = _Killer(alias)
    killer.start()
    try:
        for _ in range(60):
            killer.aim(connection_id_of(alias))
            relay.loop().turn()
            killer.aim(0)
            connections[alias].close()
            clock.advance(1)
    finally:
        killer.end()
    clock.advance(10)
    step_until_idle(relay)

    first = list(dict.fromkeys(sent_ids(broker)))
    assert sorted(first) == row_ids
    for number in range(6):
        of_key = row_ids[number::6]
        assert [each for each in first if each in of_key] == of_key
    assert set(statuses(alias).values()) == {"published"}
    other = second_connection(alias)
    with other.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM outbox_shard_leases WHERE owner <> ''")
        assert cursor.fetchone()[0] == SHARD_COUNT
    other.close()


# --- another database of a handler -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("database_alias", "other"),
    [("mariadb", "mysql"), ("postgres", "mariadb"), ("mysql", "postgres")],
    indirect=["database_alias"],
)
def test_connection_of_another_database_that_a_handler_lost_is_made_anew_for_the_next_event(
    alias: str, other: str, consumer: Consumer, toys: Toys
) -> None:
    row_ids = published(alias, 3, key=lambda number: f"k{number}")
    calls = []

    def use_other(deliveries: Sequence[Delivery[Any]]) -> None:
        calls.append(deliveries[0].outbox_id)
        with connections[other].cursor() as cursor:
            cursor.execute("SELECT 1")
            if len(calls) == 1:
                kill_own_connection(other)
                cursor.execute("SELECT 1")

    toys.before = use_other
    for row_id in row_ids:
        deliver(alias, consumer, [row_id])

    assert statuses(alias)[row_ids[0]] == "pending", "its own failure"
    assert effect_ids(alias) == row_ids[1:]


@pytest.mark.parametrize(("database_alias", "other"), [("mariadb", "mysql")], indirect=["database_alias"])
def test_transaction_of_another_database_is_committed_though_one_before_was_cut_short(
    alias: str, other: str, consumer: Consumer, toys: Toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_ids = published(alias, 2, key=lambda number: f"k{number}")
    connection = connections[other]
    connection.ensure_connection()

    def be_killed(autocommit: bool) -> None:
        monkeypatch.undo()
        raise KILLED

    def use_other(deliveries: Sequence[Delivery[Any]]) -> None:
        with transaction.atomic(using=other):
            if deliveries[0].outbox_id == row_ids[0]:
                monkeypatch.setattr(connection, "_set_autocommit", be_killed)
        assert connection.autocommit

    toys.before = use_other
    for row_id in row_ids:
        deliver(alias, consumer, [row_id])

    assert effect_ids(alias) == row_ids[1:]
