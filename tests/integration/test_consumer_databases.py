"""Databases that are in the way, by deadlocks, held rows and broken connections, cost no event an attempt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, InterfaceError, OperationalError, connections

from agent_events.agent.models import AgentStateSnapshotRecord
from outbox import Delivery
from outbox.brokers.memory import MemoryBroker
from outbox.consumer.loop import Consumer
from outbox.coordination.heartbeat import NullHeartbeat
from tests import factories
from tests.consumers import Scripted, deliver, published, subscribing
from tests.factories import database_now, get, make_due, records_of, statuses
from tests.toys import BULK, RecordingStop, Toys, effect_ids, effects
from tests.transactions import (
    OtherTransaction,
    deadlock_of,
    drop_own_connection,
    kill_own_connection,
    second_connection,
)
from tests.waiting import wait_until


def test_lost_deadlock_is_done_again_and_costs_nothing(alias: str, toys: Toys, consumer: Consumer) -> None:
    ids = published(alias, 3, event_type=BULK)
    losses = iter([deadlock_of(alias), deadlock_of(alias)])

    def lose(_deliveries: Any) -> None:
        for error in losses:
            raise error

    toys.before = lose
    deliver(alias, consumer, ids)

    assert effect_ids(alias) == ids
    assert toys.calls == [tuple(ids)] * 3, "the whole batch again, not cut"
    assert {get(alias, each).retry_count for each in ids} == {0}


def test_event_that_loses_its_locks_for_ever_is_put_off_and_costs_nothing(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    unlucky, lucky = published(alias, 2, key=str)
    toys.fail(unlucky, lambda _delivery: deadlock_of(alias))

    deliver(alias, consumer, [unlucky, lucky])

    found = get(alias, unlucky)
    assert effect_ids(alias) == [lucky]
    assert (found.status, found.retry_count, found.last_error) == ("pending", 0, None)
    assert found.next_retry_at > database_now(alias)


class _Hidden(Exception):  # noqa: N818
    """What a handler may make of a database error."""


def test_failure_after_somebody_elses_deadlock_is_its_own(alias: str, toys: Toys, consumer: Consumer) -> None:
    unlucky, failing = published(alias, 2, key=str)
    toys.fail(unlucky, lambda _delivery: deadlock_of(alias))
    toys.fail(failing, ValueError("no"))

    deliver(alias, consumer, [unlucky, failing])

    assert (get(alias, unlucky).retry_count, get(alias, failing).retry_count) == (0, 1)


def test_deadlock_that_a_handler_passes_on_in_its_own_words_costs_nothing(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    [row_id] = published(alias, 1)
    losses = iter(range(2))

    def lose(_deliveries: Any) -> None:
        for _ in losses:
            try:
                raise deadlock_of(alias)
            except OperationalError as error:
                raise _Hidden from error

    toys.before = lose
    deliver(alias, consumer, [row_id])

    assert effect_ids(alias) == [row_id]
    assert get(alias, row_id).retry_count == 0


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_row_that_somebody_else_has_locked_holds_up_nobody_and_costs_nothing(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    first, held, third = published(alias, 3, key=str)
    records = records_of(alias, [first, held, third])
    other = second_connection(alias)
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute("SELECT id FROM agent_outbox_messages WHERE id = %s FOR UPDATE", [held])
        assert consumer.handle(records) == [records[1]], "it is still to be done"
        assert sorted(effect_ids(alias)) == [first, third]
        other.rollback()
    finally:
        other.close()
    assert consumer.handle([records[1]]) == []

    assert sorted(effect_ids(alias)) == [first, held, third]
    assert {get(alias, each).retry_count for each in (first, held, third)} == {0}


@pytest.mark.parametrize("raises", [True, False], ids=["and-raises", "and-returns"])
def test_handler_that_closes_the_connection_fails_for_itself(
    alias: str, toys: Toys, consumer: Consumer, raises: bool
) -> None:
    """As one that was written for a thread of its own does; taken for an outage it would hold up everybody for ever."""
    first, closing, third = published(alias, 3, key=str)

    def close(deliveries: Sequence[Delivery[Any]]) -> None:
        if deliveries[0].outbox_id == closing:
            connections[alias].close()
            if raises:
                raise LookupError("nothing found")

    toys.before = close
    deliver(alias, consumer, [first, closing, third])

    assert sorted(effect_ids(alias)) == [first, third]
    found = get(alias, closing)
    assert (found.status, found.retry_count) == ("pending", 1)
    assert found.error_class == ("LookupError" if raises else "ClosedConnectionError")


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_outage_that_a_handler_hides_behind_a_closed_connection_costs_nothing(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    [row_id] = published(alias, 1)

    def tidy_up(_deliveries: Any) -> None:
        kill_own_connection(alias)
        try:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")
        except DatabaseError:
            connections[alias].close()
            raise LookupError("nothing found") from None

    toys.before = tidy_up
    with pytest.raises(InterfaceError):
        deliver(alias, consumer, [row_id])
    toys.before = None
    deliver(alias, consumer, [row_id])

    assert effect_ids(alias) == [row_id]
    assert get(alias, row_id).retry_count == 0


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql"], indirect=True)
def test_deadlock_that_a_handler_swallows_loses_nobodys_effect(alias: str, toys: Toys, consumer: Consumer) -> None:
    """The server rolls the whole transaction back, what went before included, and the handler goes on as if not."""
    mine, theirs = (
        AgentStateSnapshotRecord.objects.using(alias).create(conversation_id=name, user_id=1, snapshot_json="{}").pk
        for name in ("mine", "theirs")
    )
    innocent, swallowing = published(alias, 2, key=str)
    swallowed: list[OperationalError] = []

    def swallow(deliveries: Sequence[Delivery[Any]]) -> None:
        if deliveries[0].outbox_id == swallowing and not swallowed:
            try:
                run_into_a_deadlock(alias, mine=mine, theirs=theirs)
            except OperationalError as error:
                swallowed.append(error)

    toys.before = swallow
    deliver(alias, consumer, [innocent, swallowing])
    make_due(alias)
    deliver(alias, consumer, [innocent, swallowing])

    assert [error.args[0] for error in swallowed] == [1213]
    assert set(statuses(alias).values()) == {"consumed"}
    assert effect_ids(alias) == [innocent, swallowing]
    assert {get(alias, each).retry_count for each in (innocent, swallowing)} == {0}


def run_into_a_deadlock(alias: str, *, mine: int, theirs: int) -> None:
    """Lose a deadlock against a transaction that has done too much to be the victim.

    :raises OperationalError: the deadlock.
    """

    def work() -> None:
        AgentStateSnapshotRecord.objects.using(alias).bulk_create(
            AgentStateSnapshotRecord(conversation_id=f"heavy-{number}", user_id=1, snapshot_json="{}")
            for number in range(200)
        )
        lock(alias, theirs)
        lock(alias, mine)

    lock(alias, mine)
    other = OtherTransaction(alias, work)
    other.start()
    wait_until(other.is_waiting_for_a_lock, timeout=30)
    lock(alias, theirs)


def lock(alias: str, pk: int) -> None:
    list(AgentStateSnapshotRecord.objects.using(alias).select_for_update().filter(pk=pk))


def test_statement_that_a_handler_got_wrong_is_its_own_fault(alias: str, toys: Toys, consumer: Consumer) -> None:
    def violate(deliveries: Sequence[Delivery[Any]]) -> None:
        if deliveries[0].outbox_id == bad:
            for _ in range(2):
                AgentStateSnapshotRecord.objects.using(alias).create(
                    conversation_id="once", user_id=1, snapshot_json="{}"
                )

    bad, good = published(alias, 2, key=str)
    toys.before = violate

    deliver(alias, consumer, [bad, good])

    assert effect_ids(alias) == [good]
    assert (get(alias, bad).retry_count, get(alias, bad).error_class) == (1, IntegrityError.__name__)


BREAKS = [
    ("mariadb", kill_own_connection),
    ("mysql", kill_own_connection),
    ("postgres", kill_own_connection),
    ("postgres", drop_own_connection),
]


@pytest.mark.parametrize(("database_alias", "breaks_it"), BREAKS, indirect=["database_alias"])
def test_connection_that_breaks_between_two_batches_is_opened_again(
    alias: str, toys: Toys, stop: RecordingStop, breaks_it: Callable[[str], None]
) -> None:
    ids = published(alias, 2)
    consumer = factories.consumer(alias, toys, subscribe=subscribing(Scripted(records_of(alias, ids))))
    breaks_it(alias)

    consumer.run(stop, max_events=2)

    assert effect_ids(alias) == ids
    assert len(stop.pauses) == 1


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize(("database_alias", "breaks_it"), BREAKS, indirect=["database_alias"])
def test_connection_that_breaks_under_a_handler_is_nobodys_fault(
    alias: str,
    toys: Toys,
    broker: MemoryBroker,
    stop: RecordingStop,
    breaks_it: Callable[[str], None],
    hides: bool,
    count: int,
) -> None:
    ids = published(alias, count, event_type=BULK)
    consumer = factories.consumer(alias, toys, broker=broker, heartbeat=NullHeartbeat())
    for each in records_of(alias, ids):
        broker.put(each.topic, value=each.value, key=each.key)
    breaks = iter([True, True])

    def break_connection(_deliveries: Any) -> None:
        if next(breaks, False):
            breaks_it(alias)
            if hides:
                try:
                    effects(alias)
                except DatabaseError as error:
                    raise _Hidden from error

    toys.before = break_connection
    totals = consumer.run(stop, max_events=count)

    assert effect_ids(alias) == ids
    assert {get(alias, each).retry_count for each in ids} == {0}
    assert (totals.consumed, totals.retried) == (count, 0)
