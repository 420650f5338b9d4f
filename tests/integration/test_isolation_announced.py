"""Events that may have ended a worker: alone, and counted before they are tried, so that a dead process need not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from django.db import InterfaceError, connections

from outbox import Delivery
from outbox.consumer.isolation import MAX_INTERRUPTIONS
from outbox.consumer.loop import Consumer
from outbox.lifecycle import Status
from tests import factories
from tests.consumers import published
from tests.factories import change, get, make_due, records_of, statuses
from tests.integration.misbehaving import execute
from tests.toys import BULK, Toys, effect_ids
from tests.transactions import kill_own_connection, second_connection

on_servers = pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)

Seen = list[tuple[int, str, int]]


def let_look(alias: str, toys: Toys) -> Seen:
    """Have handlers look at their rows from a second connection; return what they see, filled as they do."""
    seen: Seen = []

    def before(deliveries: Sequence[Delivery[Any]]) -> None:
        other = second_connection(alias)
        try:
            with other.cursor() as cursor:
                for each in deliveries:
                    cursor.execute(
                        "SELECT id, status, interruptions FROM agent_outbox_messages WHERE id = %s", [each.outbox_id]
                    )
                    seen.append(cursor.fetchone())
        finally:
            other.close()

    toys.before = before
    return seen


@on_servers
def test_event_that_was_interrupted_is_done_alone_and_counted_before_its_handler(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    ids = published(alias, 4, key=str, event_type=BULK)
    change(alias, ids[1], interruptions=2)
    seen = let_look(alias, toys)

    assert consumer.handle(records_of(alias, ids)) == []

    assert toys.calls == [(ids[0], ids[2], ids[3]), (ids[1],)]
    assert {each[0]: each[1:3] for each in seen}[ids[1]] == ("pending", 3)
    assert {each[0]: each[1:3] for each in seen}[ids[0]] == ("published", 0)
    assert statuses(alias) == dict.fromkeys(ids, "consumed")
    assert {get(alias, each).interruptions for each in ids} == {0}


@on_servers
def test_next_due_time_of_an_announced_event_is_written_before_its_handler(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    [row_id] = published(alias, 1, interruptions=1)
    due: list[Any] = []

    def look(_deliveries: Sequence[Delivery[Any]]) -> None:
        other = second_connection(alias)
        try:
            with other.cursor() as cursor:
                cursor.execute("SELECT next_retry_at FROM agent_outbox_messages WHERE id = %s", [row_id])
                due.append(cursor.fetchone()[0])
        finally:
            other.close()

    toys.before = look
    now = factories.database_now(alias)
    consumer.handle(records_of(alias, [row_id]))

    [due_at] = due
    assert due_at.replace(tzinfo=None) > now.replace(tzinfo=None)


@on_servers
def test_records_of_a_worker_that_died_are_done_one_by_one_and_announced(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    ids = published(alias, 5, key=str, event_type=BULK)
    records = records_of(alias, ids)
    seen = let_look(alias, toys)

    consumer._processor.process(records, is_suspect=lambda record: record in records[:2])

    assert toys.calls == [(ids[0],), (ids[1],), tuple(ids[2:])]
    assert [(each[1], each[2]) for each in seen] == [("pending", 1)] * 2 + [("published", 0)] * 3
    assert effect_ids(alias) == ids
    assert {get(alias, each).interruptions for each in ids} == {0}


def test_order_of_a_key_holds_around_an_event_that_was_interrupted(alias: str, toys: Toys, consumer: Consumer) -> None:
    ids = published(alias, 6, key=lambda number: "ab"[number % 2])
    change(alias, ids[2], interruptions=1)

    consumer.handle(records_of(alias, ids))

    assert effect_ids(alias, key="a") == ids[::2]
    assert effect_ids(alias, key="b") == ids[1::2]
    assert statuses(alias) == dict.fromkeys(ids, "consumed")


def test_announced_event_that_fails_pays_an_attempt_and_no_interruption(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    [row_id] = published(alias, 1, interruptions=2)
    toys.fail(row_id, ValueError("no"))

    consumer.handle(records_of(alias, [row_id]))

    found = get(alias, row_id)
    assert (found.status, found.retry_count, found.interruptions) == ("pending", 1, 0)


@on_servers
def test_outage_during_an_announced_try_withdraws_what_was_counted(alias: str, toys: Toys, consumer: Consumer) -> None:
    ids = published(alias, 2, key=str)
    change(alias, ids[0], interruptions=2)
    records = records_of(alias, ids)

    def outage(deliveries: Sequence[Delivery[Any]]) -> None:
        if deliveries[0].outbox_id == ids[0]:
            kill_own_connection(alias)
            execute(alias, "SELECT 1")

    toys.before = outage
    with pytest.raises(InterfaceError):
        consumer.handle(records)  # without a witness: it may have been the server
    assert get(alias, ids[0]).interruptions == 3
    consumer.let_go()

    found = get(alias, ids[0])
    assert (found.status, found.interruptions, found.retry_count) == ("pending", 0, 0)
    assert found.next_retry_at <= factories.database_now(alias)
    toys.before = None
    consumer.handle(records)
    assert sorted(effect_ids(alias)) == ids


@on_servers
def test_next_batch_withdraws_what_an_outage_left_announced(alias: str, toys: Toys, consumer: Consumer) -> None:
    [row_id] = published(alias, 1, interruptions=1)

    def outage(_deliveries: Sequence[Delivery[Any]]) -> None:
        kill_own_connection(alias)
        execute(alias, "SELECT 1")

    toys.before = outage
    for _ in range(2 * MAX_INTERRUPTIONS):
        with pytest.raises(InterfaceError):
            consumer.handle(records_of(alias, [row_id]))
    assert get(alias, row_id).interruptions <= 1
    toys.before = None
    consumer.handle(records_of(alias, [row_id]))

    assert get(alias, row_id).status == "consumed"


@pytest.mark.parametrize("moved", ["retried", "announced", "replayed", "consumed"])
def test_announcement_that_another_worker_overtook_is_not_tried(alias: str, toys: Toys, moved: str) -> None:
    """A worker that stood still between announcing and trying finds the row changed, and leaves it alone."""
    consumer = factories.consumer(alias, toys)
    [row_id] = published(alias, 1, interruptions=1)
    changes = {
        "retried": {"retry_count": 1, "interruptions": 0},
        "announced": {"interruptions": 3},
        "replayed": {"replay_count": 1, "interruptions": 0},
        "consumed": {"status": Status.CONSUMED, "interruptions": 0},
    }[moved]
    note = consumer._processor.announcements.note

    def stand_still(row: Any) -> Any:
        announced = note(row)
        change(alias, row_id, **changes)
        return announced

    consumer._processor.announcements.note = stand_still  # type: ignore[method-assign]
    consumer.handle(records_of(alias, [row_id]))

    assert toys.calls == []
    found = get(alias, row_id)
    assert {name: getattr(found, name) for name in changes} == changes


def test_event_that_was_announced_too_often_is_dead_without_a_call(alias: str, toys: Toys, consumer: Consumer) -> None:
    ids = published(alias, 3, key=str)
    change(alias, ids[1], interruptions=MAX_INTERRUPTIONS)

    consumer.handle(records_of(alias, ids))

    found = get(alias, ids[1])
    assert (found.status, found.retry_count, found.error_class) == ("dead", 0, "TooManyInterruptionsError")
    assert f"{MAX_INTERRUPTIONS} times in a row" in found.last_error
    assert sorted(effect_ids(alias)) == [ids[0], ids[2]]
    assert ids[1] not in {row_id for call in toys.calls for row_id in call}


def test_event_with_the_last_interruption_but_one_is_tried_once_more(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    [row_id] = published(alias, 1, interruptions=MAX_INTERRUPTIONS - 1)

    consumer.handle(records_of(alias, [row_id]))

    assert get(alias, row_id).status == "consumed"


def test_replay_of_an_event_that_died_of_interruptions_begins_at_none(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    [row_id] = published(alias, 1, interruptions=MAX_INTERRUPTIONS)
    consumer.handle(records_of(alias, [row_id]))
    factories.repository().replay([row_id])
    make_due(alias)

    consumer.handle(records_of(alias, [row_id]))

    assert get(alias, row_id).status == "consumed"
    assert connections[alias].in_atomic_block is False
