"""The consumer on every database: one effect for every event, and the newest snapshot wins."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import transaction

from agent_events.agent.models import AgentStateSnapshotRecord
from agent_events.agent.snapshots import Snapshot, save
from outbox import Delivery, Discard
from outbox.consumer.loop import Consumer
from outbox.lifecycle import Status
from outbox.wire.envelope import encode_envelope
from tests import factories
from tests.consumers import deliver, published
from tests.factories import get, make_due, record_of, row, rows, statuses
from tests.toys import BULK, NOTE, Toys, effect_ids, effects

# --- one effect --------------------------------------------------------------------------------------------------


def test_effect_and_status_commit_together(alias: str, toys: Toys, consumer: Consumer) -> None:
    ids = published(alias, 3)
    before: list[Any] = []
    toys.before = lambda deliveries: before.append(list(statuses(alias).values()))

    deliver(alias, consumer, ids)

    assert before[0] == ["published"] * 3
    assert list(statuses(alias).values()) == ["consumed"] * 3
    assert effect_ids(alias) == ids
    assert consumer.totals.consumed == 3


@pytest.mark.parametrize("event_type", [NOTE, BULK])
def test_duplicates_change_nothing(alias: str, consumer: Consumer, event_type: str) -> None:
    ids = published(alias, 3, event_type=event_type)

    deliver(alias, consumer, [*ids, *ids, ids[0]])
    deliver(alias, consumer, ids)

    assert effect_ids(alias) == ids
    assert (consumer.totals.consumed, consumer.totals.duplicates) == (3, 7)


def test_record_that_is_faster_than_its_mark_is_handled(alias: str, consumer: Consumer) -> None:
    [row_id] = rows(alias, 1)

    deliver(alias, consumer, [row_id])

    assert get(alias, row_id).status == Status.CONSUMED


def test_early_duplicate_of_a_row_in_its_back_off_is_dropped(alias: str, toys: Toys, consumer: Consumer) -> None:
    [row_id] = published(alias, 1)
    toys.fail(row_id, ValueError("no"), times=1)
    deliver(alias, consumer, [row_id])
    due_at = get(alias, row_id).next_retry_at

    deliver(alias, consumer, [row_id])

    found = get(alias, row_id)
    assert (found.status, found.retry_count, found.next_retry_at) == ("pending", 1, due_at)
    assert effect_ids(alias) == []
    make_due(alias)
    deliver(alias, consumer, [row_id])
    assert effect_ids(alias) == [row_id]


def test_handler_sees_the_event_as_it_was_published(alias: str, toys: Toys, consumer: Consumer) -> None:
    row_id = row(alias, key="k", number=7, retry_count=2, traceparent="00-aa-bb-01", status=Status.PUBLISHED)
    seen: list[Delivery[Any]] = []
    toys.before = seen.extend

    deliver(alias, consumer, [row_id])

    assert seen == [
        Delivery(
            outbox_id=row_id,
            event_id="e-1",
            event_type=NOTE,
            event_version="v2",
            message_key="k",
            aggregate_id="k",
            payload=toys.types[NOTE](key="k", number=7),
            attempt=3,
            database=alias,
            traceparent="00-aa-bb-01",
        )
    ]


def test_payload_too_long_to_come_along_is_read_from_its_row(alias: str, toys: Toys) -> None:
    consumer = factories.consumer(alias, toys, batch_bytes=10)
    ids = published(alias, 2)

    deliver(alias, consumer, ids)

    assert effect_ids(alias) == ids


def test_older_version_is_lifted_before_the_handler_sees_it(alias: str, consumer: Consumer) -> None:
    row(alias, payload={"key": "k", "n": "42"}, version="v1", status=Status.PUBLISHED)

    deliver(alias, consumer, list(statuses(alias)))

    assert [effect.number for effect in effects(alias)] == [42]


def test_edited_payload_wins_over_an_old_record(alias: str, toys: Toys, consumer: Consumer) -> None:
    row_id = row(alias, number=1, status=Status.PUBLISHED)
    old_record = record_of(alias, row_id)
    toys.fail(row_id, Discard("wrong number"))
    consumer.handle([old_record])
    repository = factories.repository()
    repository.edit(row_id, payload=encode_envelope(factories.envelope(payload={"key": "k", "number": 2})))
    repository.replay([row_id])
    toys.mend(row_id)

    consumer.handle([old_record])

    assert [(effect.outbox_id, effect.number) for effect in effects(alias)] == [(row_id, 2)]


# --- the newest snapshot wins ------------------------------------------------------------------------------------


def snapshot(number: int) -> Snapshot:
    return Snapshot(
        conversation_id="conversation-1",
        user_id=number,
        phase=f"phase-{number}",
        snapshot_json=json.dumps({"n": number}),
        outbox_id=number,
    )


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))), ids=str)
@pytest.mark.parametrize("together", [False, True])
def test_newest_snapshot_wins_in_any_order_of_arrival(alias: str, order: tuple[int, ...], together: bool) -> None:
    arrivals = [[snapshot(number) for number in order]] if together else [[snapshot(number)] for number in order]
    for arrival in arrivals:
        with transaction.atomic(using=alias):
            save(arrival, using=alias)

    [kept] = AgentStateSnapshotRecord.objects.using(alias).all()
    assert (kept.user_id, kept.phase, kept.snapshot_json, kept.outbox_id) == (3, "phase-3", '{"n": 3}', 3)


def test_snapshots_of_different_conversations_stay_apart(alias: str) -> None:
    names = ["Conversation", "conversation", "cönversation", "会话"]
    snapshots = [
        Snapshot(conversation_id=name, user_id=at, phase="", snapshot_json="{}", outbox_id=at)
        for at, name in enumerate(names, start=1)
    ]
    save(snapshots[::-1], using=alias)
    save([], using=alias)

    found = AgentStateSnapshotRecord.objects.using(alias).order_by("outbox_id")
    assert [each.conversation_id for each in found] == names


def test_snapshot_that_is_replayed_late_does_not_overwrite_a_newer_one(alias: str) -> None:
    from outbox.declarations.contracts import contracts
    from outbox.declarations.handlers import handlers

    consumer = factories.consumer(
        alias,
        SimpleNamespace(
            contracts=contracts, handlers=handlers, retry_policy=None, parks_key=None, time_limit=_a_minute
        ),
    )

    def publish_snapshot(phase: str, **columns: Any) -> int:
        content = {"conversation_id": "c", "user_id": 1, "phase": phase, "snapshot_json": "{}"}
        return row(alias, key="c", event_type="agent.state.snapshot.persist", payload=content, version="v1", **columns)

    old = publish_snapshot("old", status=Status.DEAD)
    new = publish_snapshot("new", status=Status.PUBLISHED)
    deliver(alias, consumer, [new])
    factories.repository().replay([old])

    deliver(alias, consumer, [old])

    [kept] = AgentStateSnapshotRecord.objects.using(alias).all()
    assert (kept.phase, kept.outbox_id) == ("new", new)
    assert set(statuses(alias).values()) == {"consumed"}


def _a_minute(_event_type: str) -> timedelta:
    return timedelta(minutes=1)
