"""Locks of others: other keys go on within seconds, no attempt is paid at first, and what is held is not forgotten."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections

from agent_events.agent.models import AgentStateSnapshotRecord
from outbox import Delivery
from outbox.consumer.held import HOLD_FOR, YOUNG_FOR
from outbox.consumer.loop import Consumer
from outbox.lifecycle import Status
from outbox.models import RejectedRecord
from outbox.storage.sessions import worker_session
from outbox.wire.envelope import encode_message
from tests import factories
from tests.consumers import Scripted, deliver, published, subscribing
from tests.factories import TABLE, database_now, envelope, get, make_due, record, record_of, records_of, row, statuses
from tests.integration.misbehaving import execute
from tests.toys import ManualClock, Toys, effect_ids
from tests.transactions import deadlock_of, held_elsewhere

on_servers = pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)

LONG = timedelta(seconds=70)


@pytest.fixture
def business_row(alias: str) -> int:
    created = AgentStateSnapshotRecord.objects.using(alias).create(
        conversation_id="contended", user_id=1, snapshot_json="{}"
    )
    return int(created.pk)


@pytest.fixture
def bounded(alias: str) -> Iterator[None]:
    """Give the test's thread the sessions of a worker: they wait for a lock for a second."""
    with worker_session(alias, idle=LONG):
        yield


def lock_row(alias: str, pk: int) -> None:
    list(AgentStateSnapshotRecord.objects.using(alias).select_for_update().filter(pk=pk))


def lock_outbox_row(alias: str, row_id: int) -> None:
    execute(alias, f"SELECT id FROM {TABLE} WHERE id = {row_id} FOR UPDATE")


def let_want(toys: Toys, row_ids: set[int], pk: int) -> None:
    def before(deliveries: Sequence[Delivery[Any]]) -> None:
        if any(each.outbox_id in row_ids for each in deliveries):
            lock_row(deliveries[0].database, pk)

    toys.before = before


# --- a business row ----------------------------------------------------------------------------------------------


@on_servers
def test_event_whose_row_a_stranger_has_locked_is_deferred_and_other_keys_go_on(
    alias: str, toys: Toys, business_row: int, bounded: None
) -> None:
    consumer = factories.consumer(alias, toys)
    ids = published(alias, 20, key=str)
    contended = ids[7]
    let_want(toys, {contended}, business_row)

    with held_elsewhere(alias, lambda: lock_row(alias, business_row)):
        began = time.monotonic()
        deliver(alias, consumer, ids)
        took_s = time.monotonic() - began
        assert sorted(effect_ids(alias)) == [each for each in ids if each != contended]
        found = get(alias, contended)
        assert (found.status, found.retry_count, found.interruptions) == ("pending", 0, 0)
    assert took_s < 5
    make_due(alias)
    deliver(alias, consumer, [contended])
    assert get(alias, contended).status == "consumed"


@on_servers
def test_pauses_of_a_contended_event_grow_and_in_the_end_it_pays(alias: str, toys: Toys) -> None:
    """The error alone stands for the lock here: twenty-five waits of a second would take as long."""
    consumer = factories.consumer(alias, toys)
    [row_id] = published(alias, 1)
    toys.fail(row_id, lambda _delivery: deadlock_of(alias))
    pauses: list[timedelta] = []

    for _ in range(60):
        deliver(alias, consumer, [row_id])
        found = get(alias, row_id)
        if found.retry_count:
            break
        pauses.append(found.next_retry_at - database_now(alias))
        make_due(alias)

    assert get(alias, row_id).retry_count == 1
    assert len(pauses) >= 8, "so long it costs nothing"
    assert pauses[0] < pauses[2] < pauses[4]
    assert max(pauses) < timedelta(minutes=3)


@on_servers
def test_all_lock_waits_of_a_batch_are_bounded_and_the_rest_is_deferred_untried(
    alias: str, toys: Toys, business_row: int, bounded: None
) -> None:
    consumer = factories.consumer(alias, toys)
    ids = published(alias, 24, key=str)
    contended = set(ids[::2])
    let_want(toys, contended, business_row)

    with held_elsewhere(alias, lambda: lock_row(alias, business_row)):
        began = time.monotonic()
        deliver(alias, consumer, ids)
        took_s = time.monotonic() - began

    assert took_s < 5, "twelve waits of a second each would be more"
    tried = {row_id for call in toys.calls for row_id in call}
    assert len(tried & contended) <= 4
    found = statuses(alias)
    assert {found[each] for each in contended} == {"pending"}
    assert {(get(alias, each).retry_count, get(alias, each).interruptions) for each in ids} == {(0, 0)}
    toys.before = None
    for _ in range(3):
        make_due(alias)
        deliver(alias, consumer, ids)
    assert sorted(effect_ids(alias)) == ids


# --- an outbox row -----------------------------------------------------------------------------------------------


@on_servers
def test_record_whose_row_a_stranger_has_locked_is_returned_and_what_follows_in_its_key_too(
    alias: str, toys: Toys, consumer: Consumer, bounded: None
) -> None:
    locked, other, behind = published(alias, 3, key=lambda number: "aba"[number])
    records = records_of(alias, [locked, other, behind])

    with held_elsewhere(alias, lambda: lock_outbox_row(alias, locked)):
        began = time.monotonic()
        young = consumer._processor.process(records, is_young=lambda _record: True)
        assert time.monotonic() - began < 5
        assert young == [records[0], records[2]]
        assert effect_ids(alias) == [other]
        old = consumer._processor.process([records[0], records[2]], is_young=lambda _record: False)
        assert old == [records[0]]
        assert get(alias, behind).status == "pending", "it is deferred: the lock may take its time"
    make_due(alias)
    assert consumer.handle([records[0], record_of(alias, behind)]) == []

    assert effect_ids(alias) == [other, locked, behind]
    assert {get(alias, each).retry_count for each in (locked, other, behind)} == {0}


@on_servers
def test_consumer_commits_only_what_lies_before_a_held_record(alias: str, toys: Toys, clock: ManualClock) -> None:
    ids = published(alias, 4, key=str)
    records = [record_of(alias, row_id, offset=offset) for offset, row_id in enumerate(ids)]
    subscription = Scripted(records)
    consumer = factories.consumer(alias, toys, subscribe=subscribing(subscription), clock=clock)

    with held_elsewhere(alias, lambda: lock_outbox_row(alias, ids[1])):
        consumer.step(100)
        assert subscription.committed == records[:1]
        assert sorted(effect_ids(alias)) == [ids[0], ids[2], ids[3]]
    clock.advance(1)
    consumer.step(100)

    assert max(each.offset for each in subscription.committed) == 3
    assert sorted(effect_ids(alias)) == ids


@on_servers
def test_record_that_is_held_for_too_long_is_left_to_redelivery(alias: str, toys: Toys, clock: ManualClock) -> None:
    ids = published(alias, 3, key=str)
    records = [record_of(alias, row_id, offset=offset) for offset, row_id in enumerate(ids)]
    subscription = Scripted(records)
    consumer = factories.consumer(alias, toys, subscribe=subscribing(subscription), clock=clock)

    with held_elsewhere(alias, lambda: lock_outbox_row(alias, ids[0])):
        consumer.step(100)
        assert subscription.committed == []
        clock.advance(HOLD_FOR.total_seconds() + 1)
        consumer.step(100)
        assert max(each.offset for each in subscription.committed) == 2
    found = get(alias, ids[0])

    assert (found.status, found.retry_count) == ("published", 0)
    assert consumer.handle([records[0]]) == []
    assert get(alias, ids[0]).status == "consumed"


@on_servers
def test_row_that_a_relay_marks_just_now_defers_nothing(alias: str, toys: Toys, clock: ManualClock) -> None:
    """A successor that is deferred would wait for a fifth of a second for what takes milliseconds."""
    ids = published(alias, 3, key="k")
    records = [record_of(alias, row_id, offset=offset) for offset, row_id in enumerate(ids)]
    consumer = factories.consumer(alias, toys, subscribe=subscribing(Scripted(records)), clock=clock)

    with held_elsewhere(alias, lambda: lock_outbox_row(alias, ids[0])):
        consumer.step(100)
        assert statuses(alias) == dict.fromkeys(ids, "published")
    clock.advance(YOUNG_FOR.total_seconds() / 2)
    consumer.step(100)

    assert effect_ids(alias) == ids
    assert consumer.totals.waited == 0


def test_record_without_a_row_is_rejected_and_not_held(alias: str, toys: Toys, consumer: Consumer) -> None:
    [row_id, gone] = published(alias, 2, key=str)
    records = records_of(alias, [row_id, gone])
    execute(alias, f"DELETE FROM {TABLE} WHERE id = {gone}")

    assert consumer.handle(records) == []

    assert effect_ids(alias) == [row_id]
    [rejected] = RejectedRecord.objects.using(alias).all()
    assert "pruned or foreign" in rejected.reason


@on_servers
def test_record_of_an_earlier_row_is_rejected_though_the_row_that_has_its_id_now_is_locked(
    alias: str, consumer: Consumer
) -> None:
    row_id = row(alias, status=Status.PUBLISHED, event_id="e-1")
    ours = record_of(alias, row_id)
    earlier = record(encode_message(envelope(event_id="e-0"), outbox_id=row_id, service="agent"))

    with held_elsewhere(alias, lambda: lock_outbox_row(alias, row_id)):
        assert consumer.handle([ours, earlier]) == [ours]
        [rejected] = RejectedRecord.objects.using(alias).all()

    assert rejected.offset == earlier.offset
    assert rejected.reason.startswith(f"event_id of row {row_id} of {TABLE} is 'e-1', that of the record is 'e-0'")


@on_servers
def test_foreign_record_with_the_id_of_a_locked_row_is_rejected_for_what_that_row_is(
    alias: str, consumer: Consumer
) -> None:
    row_id = row(alias, status=Status.PUBLISHED)
    ours = record_of(alias, row_id)
    foreign = record(encode_message(envelope("agent.of.another"), outbox_id=row_id, service="agent"))

    with held_elsewhere(alias, lambda: lock_outbox_row(alias, row_id)):
        assert consumer.handle([ours, foreign]) == [ours]
        [rejected] = RejectedRecord.objects.using(alias).all()
        assert rejected.offset == foreign.offset
        assert rejected.reason.startswith(f"row {row_id} of {TABLE} is a ")


@on_servers
def test_published_row_is_as_good_locked_as_pending(alias: str, consumer: Consumer) -> None:
    """A record may be faster than the mark of its row, which its relay has locked."""
    row_id = row(alias, status=Status.PENDING)
    [record] = records_of(alias, [row_id])

    with held_elsewhere(alias, lambda: lock_outbox_row(alias, row_id)):
        assert consumer.handle([record]) == [record]
    assert consumer.handle([record]) == []

    assert get(alias, row_id).status == "consumed"
    assert not connections[alias].in_atomic_block
