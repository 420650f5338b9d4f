"""Connections lost inside handlers: an outage where the witness's was lost too, else an interruption of one event."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from django.db import DatabaseError, InterfaceError, connections

from outbox import Delivery, Discard
from outbox.consumer.isolation import MAX_INTERRUPTIONS
from outbox.consumer.loop import Consumer
from outbox.coordination.heartbeat import Heartbeat
from outbox.coordination.leases import CONSUMER, Presence
from tests import factories
from tests.consumers import published, see_through
from tests.factories import TTL, database_now, get, make_due, statuses
from tests.integration.misbehaving import execute
from tests.toys import BULK, NOTE, SERVICE, Toys, effect_ids
from tests.transactions import deadlock_of, kill_own_connection

on_servers = pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)


class FakeWitness:
    """Says what a test says about the connections of others."""

    def __init__(self) -> None:
        self.lives = True

    def token(self) -> object | None:
        return self

    def lived_on(self, token: object | None) -> bool:
        return token is self and self.lives

    def silent_s(self, since: float) -> float:
        return 0.0


@pytest.fixture
def witness() -> FakeWitness:
    return FakeWitness()


@pytest.fixture
def consumer(alias: str, toys: Toys, witness: FakeWitness) -> Consumer:
    return factories.consumer(alias, toys, witness=witness)


def send_a_statement_that_is_too_large(alias: str) -> None:
    """Send as much as the server refuses to receive; the client gives up on the connection then."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        limit = cursor.fetchone()[0]
        cursor.execute("SELECT LENGTH(%s)", ["x" * (limit + 1024)])


def kill(alias: str) -> None:
    kill_own_connection(alias)
    execute(alias, "SELECT 1")


def kill_by_itself(alias: str) -> None:
    """End the connection by a statement on it, which MySQL says was interrupted."""
    execute(alias, "KILL CONNECTION_ID()")


LOSSES = [
    ("mariadb", send_a_statement_that_is_too_large),
    ("mysql", send_a_statement_that_is_too_large),
    ("mariadb", kill),
    ("mysql", kill),
    ("mariadb", kill_by_itself),
    ("mysql", kill_by_itself),
    ("postgres", kill),
]
losing = pytest.mark.parametrize(("database_alias", "lose"), LOSSES, indirect=["database_alias"])


def let_lose(toys: Toys, row_ids: set[int], lose: Callable[[str], None]) -> None:
    def before(deliveries: Sequence[Delivery[Any]]) -> None:
        if any(each.outbox_id in row_ids for each in deliveries):
            lose(deliveries[0].database)

    toys.before = before


@losing
@pytest.mark.parametrize("event_type", [NOTE, BULK])
def test_event_that_loses_the_connection_is_interrupted_alone_and_its_neighbours_are_consumed(
    alias: str, toys: Toys, consumer: Consumer, lose: Callable[[str], None], event_type: str
) -> None:
    ids = published(alias, 5, key=str, event_type=event_type)
    bad = ids[2]
    let_lose(toys, {bad}, lose)

    see_through(alias, consumer, ids)

    assert sorted(effect_ids(alias)) == [each for each in ids if each != bad]
    found = get(alias, bad)
    assert found.status == "pending"
    assert found.next_retry_at > database_now(alias)
    if "1153" in found.last_error and lose is send_a_statement_that_is_too_large:
        assert (found.retry_count, found.interruptions) == (1, 0), "the server said what was wrong before it hung up"
    else:
        assert (found.retry_count, found.interruptions, found.error_class) == (0, 1, "ConnectionLostError")
    assert {get(alias, each).interruptions for each in ids if each != bad} == {0}


@on_servers
def test_event_whose_connection_is_lost_several_times_in_a_row_is_dead_with_that_reason(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    [row_id] = published(alias, 1)
    let_lose(toys, {row_id}, kill)

    for count in range(1, MAX_INTERRUPTIONS + 1):
        see_through(alias, consumer, [row_id])
        assert (get(alias, row_id).status, get(alias, row_id).interruptions) == ("pending", count)
        make_due(alias)
    see_through(alias, consumer, [row_id])

    found = get(alias, row_id)
    assert (found.status, found.retry_count, found.error_class) == ("dead", 0, "TooManyInterruptionsError")
    assert len(toys.calls) == MAX_INTERRUPTIONS, "not called once more to die"
    assert consumer.totals.dead == 1


@on_servers
@pytest.mark.parametrize("end", ["consumed", "raised", "deferred", "died"])
def test_orderly_end_forgets_interruptions(alias: str, toys: Toys, consumer: Consumer, end: str) -> None:
    [row_id] = published(alias, 1, interruptions=3)
    if end == "raised":
        toys.fail(row_id, ValueError("no"))
    elif end == "deferred":
        toys.fail(row_id, lambda _delivery: deadlock_of(alias))
    elif end == "died":
        toys.fail(row_id, Discard("no"))

    see_through(alias, consumer, [row_id])

    found = get(alias, row_id)
    expected = {
        "consumed": ("consumed", 0),
        "raised": ("pending", 1),
        "deferred": ("pending", 0),
        "died": ("dead", 1),
    }[end]
    assert (found.status, found.retry_count) == expected
    if end != "died":
        assert found.interruptions == 0


@on_servers
def test_interruptions_that_are_not_in_a_row_kill_nobody(alias: str, toys: Toys, consumer: Consumer) -> None:
    [row_id] = published(alias, 1, max_retry=100)
    losses = {row_id}
    let_lose(toys, losses, kill)
    toys.fail(row_id, ValueError("no"))

    for turn in range(2 * MAX_INTERRUPTIONS):
        losses.clear()
        if turn % 2 == 0:
            losses.add(row_id)
        see_through(alias, consumer, [row_id])
        make_due(alias)

    found = get(alias, row_id)
    assert (found.status, found.retry_count, found.interruptions) == ("pending", MAX_INTERRUPTIONS, 0)


@on_servers
@pytest.mark.parametrize("event_type", [NOTE, BULK])
@pytest.mark.parametrize("count", [1, 4])
def test_connection_that_the_witness_lost_too_was_an_outage_and_counts_nothing(
    alias: str, toys: Toys, consumer: Consumer, witness: FakeWitness, count: int, event_type: str
) -> None:
    ids = published(alias, count, key=str, event_type=event_type)
    let_lose(toys, {ids[-1]}, kill)
    witness.lives = False

    with pytest.raises(InterfaceError):
        see_through(alias, consumer, ids)
    assert {(get(alias, each).retry_count, get(alias, each).interruptions) for each in ids} == {(0, 0)}
    toys.before = None
    see_through(alias, consumer, ids)

    assert effect_ids(alias) == ids


@on_servers
def test_handler_that_hides_the_loss_is_interrupted_all_the_same(alias: str, toys: Toys, consumer: Consumer) -> None:
    def lose_and_return(alias: str) -> None:
        try:
            kill(alias)
        except (DatabaseError, InterfaceError):
            return

    ids = published(alias, 3, key=str)
    toys.handlers.remove(NOTE)
    toys.handlers.add(NOTE, lambda each: lose_and_return(alias) if each.outbox_id == ids[1] else None)

    see_through(alias, consumer, ids)

    assert statuses(alias) == dict.fromkeys(ids, "consumed") | {ids[1]: "pending"}
    assert (get(alias, ids[1]).interruptions, get(alias, ids[1]).retry_count) == (1, 0)


# --- the real witness --------------------------------------------------------------------------------------------


@pytest.fixture
def heartbeat(alias: str) -> Iterator[Heartbeat]:
    presence = Presence(service=SERVICE, role=CONSUMER, worker_id="consumer-witness", using=alias, ttl=TTL)
    beating = Heartbeat(presence, interval=factories.HEARTBEAT)
    beating.start()
    yield beating
    beating.close()


@on_servers
def test_heartbeat_that_lives_on_tells_an_interruption(alias: str, toys: Toys, heartbeat: Heartbeat) -> None:
    consumer = factories.consumer(alias, toys, heartbeat=heartbeat)
    ids = published(alias, 3, key=str)
    let_lose(toys, {ids[1]}, kill)

    see_through(alias, consumer, ids)

    assert statuses(alias) == dict.fromkeys(ids, "consumed") | {ids[1]: "pending"}
    assert (get(alias, ids[1]).interruptions, get(alias, ids[1]).retry_count) == (1, 0)


@on_servers
def test_heartbeat_that_was_lost_as_well_tells_an_outage(alias: str, toys: Toys, heartbeat: Heartbeat) -> None:
    consumer = factories.consumer(alias, toys, heartbeat=heartbeat)
    ids = published(alias, 3, key=str)
    let_lose(toys, {ids[1]}, _kill_all)

    with pytest.raises(InterfaceError):
        see_through(alias, consumer, ids)
    toys.before = None
    see_through(alias, consumer, ids)

    assert effect_ids(alias) == ids
    assert {(get(alias, each).retry_count, get(alias, each).interruptions) for each in ids} == {(0, 0)}


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)
def test_packet_that_the_server_answers_for_is_the_events_own_failure(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    """1153 is said where the server still reads what it refuses; it names the statement, so nothing is guessed."""
    from django.db import OperationalError

    ids = published(alias, 3, key=str)
    toys.fail(ids[1], OperationalError(1153, "Got a packet bigger than 'max_allowed_packet' bytes"))

    see_through(alias, consumer, ids)

    assert effect_ids(alias) == [ids[0], ids[2]]
    assert (get(alias, ids[1]).retry_count, get(alias, ids[1]).interruptions) == (1, 0)


def _kill_all(alias: str) -> None:
    """End every session of the test's database, as a server that stops does; then notice it."""
    database = connections[alias].settings_dict["NAME"]
    with connections[alias].cursor() as cursor:
        if connections[alias].vendor == "postgresql":
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
                [database],
            )
        else:
            cursor.execute(
                "SELECT id FROM information_schema.processlist WHERE db = %s AND id <> CONNECTION_ID()", [database]
            )
            for (other,) in cursor.fetchall():
                cursor.execute(f"KILL {other}")
    kill(alias)
