"""The consumer on every database: one effect, order per key, and one bad event stops nobody else."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext

from agent_events.agent.models import AgentOutboxMessage, AgentStateSnapshotRecord
from agent_events.agent.snapshots import Snapshot, save
from outbox import Delivery, Discard, Retry, signals
from outbox.brokers.base import IncomingRecord, Subscription
from outbox.brokers.memory import MemoryBroker
from outbox.consumer import Consumer
from outbox.envelope import encode_envelope, encode_message
from outbox.exceptions import BrokerUnavailableError, LostSubscriptionError
from outbox.lifecycle import Status
from outbox.models import RejectedRecord, ServiceSwitch, Worker
from outbox.rejections import RejectionStore
from outbox.sql import Trouble, trouble_of
from outbox.tracing import current_traceparent
from tests import factories
from tests.factories import database_now, get, make_due, record, record_of, records_of, row, rows, statuses
from tests.toys import (
    BULK,
    HANDLED,
    NOTE,
    OTHER,
    PARKED,
    PARKED_BULK,
    UNHANDLED,
    ManualClock,
    RecordingStop,
    Toys,
    effect_ids,
    effects,
)
from tests.transactions import OtherTransaction, drop_own_connection, kill_own_connection, second_connection
from tests.waiting import wait_until

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
def consumer(alias: str, toys: Toys) -> Consumer:
    return factories.consumer(alias, toys)


def published(alias: str, count: int, **columns: Any) -> list[int]:
    return rows(alias, count, status=Status.PUBLISHED, **columns)


def deliver(alias: str, consumer: Consumer, row_ids: Sequence[int]) -> None:
    consumer.handle(records_of(alias, row_ids))


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


# --- order per key -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event_type", [NOTE, BULK])
def test_retry_keeps_order_of_key_while_other_keys_go_on(
    alias: str, toys: Toys, consumer: Consumer, event_type: str
) -> None:
    first, second, third = published(alias, 3, event_type=event_type)
    elsewhere = row(alias, key="other", event_type=event_type, status=Status.PUBLISHED)
    toys.fail(first, ValueError("not yet"), times=2)

    deliver(alias, consumer, [first, second, third, elsewhere])

    assert effect_ids(alias) == [elsewhere]
    assert get(alias, first).retry_count == 1
    for waiting in (second, third):
        found = get(alias, waiting)
        assert (found.status, found.retry_count) == ("pending", 0), "waiting costs no attempt"
        assert found.next_retry_at == get(alias, first).next_retry_at, "it comes again with its predecessor"

    make_due(alias)
    deliver(alias, consumer, [third, second])
    assert effect_ids(alias, key="k") == []
    make_due(alias)
    deliver(alias, consumer, [first, second, third])
    assert effect_ids(alias, key="k") == []
    make_due(alias)
    deliver(alias, consumer, [third, first, second])
    assert effect_ids(alias, key="k") == [first, second, third]
    assert get(alias, second).retry_count == 0


def test_order_holds_across_event_types_and_their_handlers(alias: str, consumer: Consumer) -> None:
    ids = [
        row(alias, key=key, event_type=event_type, status=Status.PUBLISHED)
        for event_type in (BULK, NOTE, BULK, OTHER, BULK, NOTE)
        for key in ("a", "b")
    ]

    deliver(alias, consumer, ids[::-1])

    for key in ("a", "b"):
        of_key = effect_ids(alias, key=key)
        assert of_key == sorted(of_key)
        assert len(of_key) == 6


def test_event_whose_predecessor_is_not_there_yet_waits(alias: str, consumer: Consumer) -> None:
    first, second = published(alias, 2)

    deliver(alias, consumer, [second])

    assert get(alias, second).status == Status.PENDING
    assert get(alias, second).next_retry_at > database_now(alias)
    assert (consumer.totals.waited, effect_ids(alias)) == (1, [])
    deliver(alias, consumer, [first])
    make_due(alias)
    deliver(alias, consumer, [second])
    assert effect_ids(alias) == [first, second]


def test_late_committed_predecessor_is_not_skipped(alias: str, toys: Toys, consumer: Consumer) -> None:
    """Ids are given before transactions commit: a smaller id may appear later, and is handled then."""
    reserved = row(alias, key="late", status=Status.PUBLISHED)
    AgentOutboxMessage.objects.using(alias).filter(pk=reserved).delete()
    second = row(alias, key="late", status=Status.PUBLISHED)
    deliver(alias, consumer, [second])
    row(alias, id=reserved, key="late", status=Status.PUBLISHED)

    deliver(alias, consumer, [reserved])

    assert set(statuses(alias).values()) == {"consumed"}
    assert sorted(effect_ids(alias)) == [reserved, second]


def test_predecessor_of_a_foreign_type_is_not_waited_for(alias: str, toys: Toys) -> None:
    consumer = factories.consumer(alias, toys, foreign_types=("memory.extract.requested",))
    row(alias, event_type="memory.extract.requested")
    own = row(alias, status=Status.PUBLISHED)

    deliver(alias, consumer, [own])

    assert effect_ids(alias) == [own]


# --- what fails --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event_type", [NOTE, BULK])
def test_poison_event_alone_dies_and_says_why(alias: str, toys: Toys, consumer: Consumer, event_type: str) -> None:
    ids = published(alias, 20, key=lambda number: f"key-{number}", event_type=event_type, max_retry=1)
    poison = ids[7]
    toys.fail(poison, LookupError("no such thing: 42"))

    deliver(alias, consumer, ids)

    assert sorted(effect_ids(alias)) == [each for each in ids if each != poison]
    found = get(alias, poison)
    assert (found.status, found.retry_count, found.error_class) == ("dead", 1, "LookupError")
    assert found.last_error == "LookupError: no such thing: 42"
    assert "Traceback (most recent call last)" in found.traceback
    assert "in _act" in found.traceback
    assert abs(found.dead_at - database_now(alias)) < HOUR
    assert (consumer.totals.consumed, consumer.totals.dead, consumer.totals.retried) == (19, 1, 0)


def test_several_poison_events_of_one_batch_are_found_and_nothing_else(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    ids = published(alias, 30, key=lambda number: f"key-{number}", event_type=BULK)
    poison = {ids[0], ids[1], ids[13], ids[29]}
    for each in poison:
        toys.fail(each, ValueError("no"))

    deliver(alias, consumer, ids)

    assert {each for each, status in statuses(alias).items() if status != "consumed"} == poison
    assert all(get(alias, each).retry_count == 1 for each in poison)
    assert sorted(effect_ids(alias)) == sorted(set(ids) - poison)


def test_reason_of_one_event_says_nothing_of_another(alias: str, toys: Toys, consumer: Consumer) -> None:
    """They failed in one batch, and have nothing to do with each other."""
    first, second = published(alias, 2, key=str)
    toys.fail(first, LookupError("of the first"))
    toys.fail(second, ArithmeticError("of the second"))

    deliver(alias, consumer, [first, second])

    assert "of the second" not in get(alias, first).traceback
    assert "of the first" not in get(alias, second).traceback
    assert "of the second" in get(alias, second).traceback
    assert "During handling of the above exception" not in get(alias, second).traceback


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


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError("no")], ids=repr)
@pytest.mark.parametrize("event_type", [NOTE, BULK])
def test_handler_that_would_end_the_worker_fails_for_itself(
    alias: str, toys: Toys, consumer: Consumer, error: BaseException, event_type: str
) -> None:
    exiting, other = published(alias, 2, key=str, event_type=event_type)
    toys.fail(exiting, error)

    deliver(alias, consumer, [exiting, other])

    assert effect_ids(alias) == [other]
    found = get(alias, exiting)
    assert (found.status, found.retry_count, found.error_class) == ("pending", 1, "HandlerExitError")
    assert type(error).__name__ in found.last_error


@pytest.mark.parametrize("count", [1, 2])
def test_interrupted_handler_is_not_tried_further(alias: str, toys: Toys, consumer: Consumer, count: int) -> None:
    """Ctrl-C a second time: the operator wants the process to end now."""
    ids = published(alias, count, key=str)
    toys.fail(ids[0], KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        deliver(alias, consumer, ids)

    assert {(each.status, each.retry_count) for each in (get(alias, row_id) for row_id in ids)} == {("published", 0)}
    assert effect_ids(alias) == []


def test_attempts_back_off_and_end_in_death(alias: str, toys: Toys, consumer: Consumer) -> None:
    row_id = row(alias, max_retry=3, status=Status.PUBLISHED)
    toys.fail(row_id, ValueError("no"))

    for attempt, pause_s in ((1, 10), (2, 20)):
        deliver(alias, consumer, [row_id])
        found = get(alias, row_id)
        assert (found.status, found.retry_count) == ("pending", attempt)
        assert abs(found.next_retry_at - database_now(alias) - timedelta(seconds=pause_s)) < 5 * SECOND
        make_due(alias)
    deliver(alias, consumer, [row_id])

    assert (get(alias, row_id).status, get(alias, row_id).retry_count) == ("dead", 3)


def test_retry_sets_its_own_pause_and_costs_an_attempt(alias: str, toys: Toys, consumer: Consumer) -> None:
    later, by_policy = published(alias, 2, key=str)
    toys.fail(later, Retry("rate limited", after=timedelta(minutes=30)))
    toys.fail(by_policy, Retry())

    deliver(alias, consumer, [later, by_policy])

    now = database_now(alias)
    assert abs(get(alias, later).next_retry_at - now - timedelta(minutes=30)) < 5 * SECOND
    assert abs(get(alias, by_policy).next_retry_at - now - 10 * SECOND) < 5 * SECOND
    assert (get(alias, later).retry_count, get(alias, later).last_error) == (1, "Retry: rate limited")


def test_retry_without_pause_is_due_at_once(alias: str, toys: Toys, consumer: Consumer) -> None:
    [row_id] = published(alias, 1)
    toys.fail(row_id, Retry(after=timedelta(0)), times=1)

    deliver(alias, consumer, [row_id])

    def comes_again() -> bool:
        deliver(alias, consumer, [row_id])
        return get(alias, row_id).status == Status.CONSUMED

    wait_until(comes_again, timeout=2, interval=0.001)


def test_pause_beyond_all_calendars_is_cut(alias: str, toys: Toys, consumer: Consumer) -> None:
    bad, good = published(alias, 2, key=str)
    toys.fail(bad, Retry("some day", after=timedelta.max))

    deliver(alias, consumer, [bad, good])

    assert get(alias, bad).next_retry_at > database_now(alias) + timedelta(days=3000)
    assert effect_ids(alias) == [good]


def test_discard_is_dead_at_once_with_its_reason(alias: str, toys: Toys, consumer: Consumer) -> None:
    discarded, following = published(alias, 2)
    toys.fail(discarded, Discard("the user is gone"))

    deliver(alias, consumer, [discarded, following])

    found = get(alias, discarded)
    assert (found.status, found.retry_count, found.last_error) == ("dead", 1, "Discard: the user is gone")
    assert effect_ids(alias) == [following], "its key goes on"


class _Unspeakable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("NUL \x00 inside"),
        ValueError("half a pair \ud800 inside"),
        ValueError("x" * 3_000_000),
        ValueError(),
        _Unspeakable(),
        ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
    ],
    ids=["nul", "surrogate", "huge", "empty", "unspeakable", "group"],
)
@pytest.mark.parametrize("max_retry", [1, 20])
def test_whatever_an_error_says_it_counts_for_its_event_only(
    alias: str, toys: Toys, consumer: Consumer, error: Exception, max_retry: int
) -> None:
    bad, good = published(alias, 2, key=str, max_retry=max_retry)
    toys.fail(bad, error)

    deliver(alias, consumer, [bad, good])

    assert effect_ids(alias) == [good]
    found = get(alias, bad)
    assert (found.status, found.retry_count) == ("dead" if max_retry == 1 else "pending", 1)
    assert found.error_class == type(error).__name__
    assert found.last_error.startswith(type(error).__name__)


UNREADABLE: list[tuple[str, dict[str, Any], str, str]] = [
    ("unknown type", {"event_type": "toy.nobody"}, "UnreadableError", "'toy.nobody' is not registered"),
    ("no handler", {"event_type": UNHANDLED}, "NoHandlerError", "no handler"),
    ("unknown version", {"version": "v9"}, "UnknownVersionError", "'v9' of 'toy.note' is unknown"),
    ("no JSON", {"stored": "no json"}, "EnvelopeError", "not an envelope"),
    ("empty", {"stored": ""}, "EnvelopeError", "not an envelope"),
    ("other type inside", {"stored": '{"event_type": "toy.other", "payload": {}}'}, "EnvelopeError", "'toy.other'"),
    ("invalid payload", {"payload": {"key": "k", "number": "x"}}, "PayloadError", "$.number"),
    ("null payload", {"stored": '{"payload": null, "event_version": "v2"}'}, "PayloadError", "null"),
    ("upcaster fails", {"version": "v1", "payload": {"key": "k"}}, "PayloadError", "upcaster failed"),
    ("too deep", {"stored": '{"payload": ' + "[" * 50_000 + "]" * 50_000 + "}"}, "EnvelopeError", "recursion"),
]


@pytest.mark.parametrize(
    ("columns", "error_class", "reason"), [case[1:] for case in UNREADABLE], ids=[case[0] for case in UNREADABLE]
)
def test_unreadable_event_dies_at_once_and_stops_nobody_else(
    alias: str, consumer: Consumer, columns: dict[str, Any], error_class: str, reason: str
) -> None:
    before, bad, after = (
        row(alias, status=Status.PUBLISHED),
        row(alias, status=Status.PUBLISHED, **columns),
        row(alias, status=Status.PUBLISHED),
    )

    deliver(alias, consumer, [before, bad, after])

    found = get(alias, bad)
    assert (found.status, found.error_class, found.retry_count) == ("dead", error_class, 0)
    assert reason in found.last_error
    assert found.dead_at is not None
    assert effect_ids(alias) == [before, after]
    assert (consumer.totals.consumed, consumer.totals.dead) == (2, 1)


def test_handler_that_fails_after_writing_leaves_nothing(alias: str, toys: Toys, consumer: Consumer) -> None:
    ids = published(alias, 4, key=str, event_type=BULK)
    toys.fail(ids[3], ValueError("no"))

    deliver(alias, consumer, ids)

    assert sorted(effect_ids(alias)) == ids[:3]


def test_event_published_by_a_handler_that_fails_is_not_published(alias: str, toys: Toys, consumer: Consumer) -> None:
    from agent_events.agent.events import AgentStateSnapshot
    from outbox import publish

    good, bad = published(alias, 2, key=str)
    toys.fail(bad, ValueError("no"))
    toys.before = lambda deliveries: publish(
        AgentStateSnapshot(conversation_id=deliveries[0].message_key, user_id=1, phase="", snapshot_json="{}")
    )

    deliver(alias, consumer, [good, bad])

    new = AgentOutboxMessage.objects.using(alias).exclude(pk__in=[good, bad])
    assert [each.message_key for each in new] == [get(alias, good).message_key]


def test_handler_that_moves_its_own_row_has_no_effect(alias: str, toys: Toys, consumer: Consumer) -> None:
    meddling, good = published(alias, 2, key=str)

    def meddle(deliveries: Sequence[Delivery[Any]]) -> None:
        if deliveries[0].outbox_id == meddling:
            factories.change(alias, meddling, status=Status.CONSUMED)

    toys.before = meddle
    deliver(alias, consumer, [meddling, good])

    assert effect_ids(alias) == [good]
    found = get(alias, meddling)
    assert (found.status, found.retry_count, found.error_class) == ("pending", 1, "LostRowError")


def test_plain_queries_of_a_handler_are_in_its_transaction(alias: str, toys: Toys, consumer: Consumer) -> None:
    """Without a word on databases: the router knows where the service lives."""
    good, bad = published(alias, 2, key=str)
    toys.fail(bad, ValueError("no"))

    def write(deliveries: Sequence[Delivery[Any]]) -> None:
        name = str(deliveries[0].outbox_id)
        AgentStateSnapshotRecord.objects.create(conversation_id=name, user_id=1, snapshot_json="{}")
        assert AgentStateSnapshotRecord.objects.filter(conversation_id=name).exists()

    toys.before = write
    deliver(alias, consumer, [good, bad])

    kept = AgentStateSnapshotRecord.objects.using(alias).values_list("conversation_id", flat=True)
    assert list(kept) == [str(good)]


@pytest.mark.parametrize("error", [RuntimeError("the hook's own fault"), Discard("the hook's own fault")])
@pytest.mark.parametrize("count", [1, 3])
def test_hook_that_fails_after_the_commit_changes_nothing(
    alias: str, toys: Toys, consumer: Consumer, error: Exception, count: int
) -> None:
    ids = published(alias, count)

    def hook() -> None:
        raise error

    toys.before = lambda deliveries: transaction.on_commit(hook, using=deliveries[0].database)
    deliver(alias, consumer, ids)

    assert effect_ids(alias) == ids
    assert {get(alias, each).status for each in ids} == {"consumed"}
    assert (consumer.totals.retried, consumer.totals.dead) == (0, 0)


# --- parked keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event_type", [PARKED, PARKED_BULK])
@pytest.mark.parametrize("decision", ["replay", "give_up", "edit"])
def test_successors_of_a_parking_event_wait_until_a_person_decides(
    alias: str, toys: Toys, consumer: Consumer, event_type: str, decision: str
) -> None:
    dead = row(alias, event_type=event_type, status=Status.PUBLISHED)
    successors = [row(alias, event_type=each, status=Status.PUBLISHED) for each in (NOTE, event_type)]
    elsewhere = row(alias, key="other", status=Status.PUBLISHED)
    toys.fail(dead, Discard("needs a person"))

    for _ in range(3):
        deliver(alias, consumer, [dead, *successors, elsewhere])
        make_due(alias)

    assert effect_ids(alias) == [elsewhere]
    assert [get(alias, each).status for each in successors] == ["pending", "pending"]
    assert [get(alias, each).retry_count for each in successors] == [0, 0]

    repository = factories.repository()
    if decision == "give_up":
        repository.give_up([dead], by="ann", reason="not needed")
    else:
        if decision == "edit":
            repository.edit(dead, payload=encode_envelope(factories.envelope(event_type)))
        toys.mend(dead)
        repository.replay([dead])
    deliver(alias, consumer, [dead, *successors])

    expected = successors if decision == "give_up" else [dead, *successors]
    assert effect_ids(alias, key="k") == expected


def test_unreadable_event_of_a_parking_type_parks_its_key_in_the_same_batch(alias: str, consumer: Consumer) -> None:
    dead = row(alias, event_type=PARKED, version="v9", status=Status.PUBLISHED)
    successor = row(alias, status=Status.PUBLISHED)

    deliver(alias, consumer, [dead, successor])

    assert get(alias, dead).parks_key
    assert get(alias, successor).status == Status.PENDING
    assert effect_ids(alias) == []


def test_successors_of_a_parked_event_come_less_and_less_often(alias: str, consumer: Consumer) -> None:
    parked = row(alias, event_type=PARKED, status=Status.DEAD, parks_key=True)
    successor = row(alias, status=Status.PUBLISHED)
    pauses = []
    for minutes in (0, 0.5, 60):
        factories.change(alias, parked, updated_at=database_now(alias) - timedelta(minutes=minutes))
        make_due(alias)
        deliver(alias, consumer, [successor])
        pauses.append((get(alias, successor).next_retry_at - database_now(alias)).total_seconds())

    assert pauses[0] < 5
    assert 25 < pauses[1] < 40
    assert 50 < pauses[2] <= 60, "never longer than the longest pause"


# --- rejected records --------------------------------------------------------------------------------------------


def rejected(alias: str) -> list[RejectedRecord]:
    return list(RejectedRecord.objects.using(alias).order_by("id"))


DEEP = b'{"outbox_id": 1, "event_type": "x", "payload": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\x00\xff garbage", "not an outbox message"),
        (b"", "no value"),
        (None, "no value"),
        (b"[1, 2]", "not an outbox message"),
        (b'{"outbox_id": 1}', "event_type"),
        (b'{"outbox_id": 999999999, "event_type": "toy.note"}', "no row 999999999 in agent_outbox_messages"),
        (b'{"outbox_id": 1, "event_type": "toy.note", "service_name": "task"}', "belongs to service 'task'"),
        (b'{"outbox_id": 1, "event_type": "toy.note", "service_name": "ta\\u0000sk"}', "belongs to service"),
        (DEEP, "not an outbox message"),
    ],
    ids=["bytes", "empty", "tombstone", "array", "half", "pruned", "foreign", "nul", "deep"],
)
def test_record_without_a_row_is_kept_with_its_bytes(
    alias: str, consumer: Consumer, value: bytes | None, reason: str
) -> None:
    good = row(alias, status=Status.PUBLISHED)
    bad = IncomingRecord(
        topic="smartflow.agent.outbox",
        partition=2,
        offset=41,
        key=b"\xfe key",
        value=value,
        headers=(("trace", b"\xff\x00"), ("event_type", b"x")),
    )

    consumer.handle([bad, record_of(alias, good)])

    [kept] = rejected(alias)
    assert (kept.service, kept.topic, kept.partition, kept.offset) == ("agent", "smartflow.agent.outbox", 2, 41)
    assert bytes(kept.key) == b"\xfe key"
    assert (None if kept.value is None else bytes(kept.value)) == value
    assert json.loads(kept.headers)[1] == ["event_type", "x"]
    assert reason in kept.reason
    assert abs(kept.received_at - database_now(alias)) < HOUR
    assert effect_ids(alias) == [good]
    assert (consumer.totals.rejected, consumer.totals.consumed) == (1, 1)


def test_rejected_record_that_comes_again_is_kept_once(alias: str, consumer: Consumer) -> None:
    garbage = record(b"garbage", partition=1, offset=7)

    consumer.handle([garbage])
    consumer.handle([garbage])
    consumer.handle([record(b"of a topic made anew", partition=1, offset=7)])

    assert [bytes(kept.value) for kept in rejected(alias)] == [b"garbage", b"of a topic made anew"]


def test_records_that_say_the_same_are_each_kept(alias: str, consumer: Consumer) -> None:
    value = b'{"outbox_id": 999999999, "event_type": "toy.note"}'

    consumer.handle([record(value, offset=1), record(value, offset=2), record(b"garbage", offset=3)])

    assert sorted(kept.offset for kept in rejected(alias)) == [1, 2, 3]
    assert (consumer.totals.rejected, consumer.totals.duplicates) == (3, 0)


def test_record_of_another_type_than_its_row_is_rejected(alias: str, toys: Toys) -> None:
    consumer = factories.consumer(alias, toys, foreign_types=("memory.extract.requested",))
    own, foreign = (
        row(alias, status=Status.PUBLISHED),
        row(alias, event_type="memory.extract.requested", status=Status.PUBLISHED),
    )
    misnamed = record(encode_message(factories.envelope(OTHER), outbox_id=own, service="agent"))

    consumer.handle([misnamed, record_of(alias, foreign)])

    assert len(rejected(alias)) == 2
    assert set(statuses(alias).values()) == {"published"}


def test_foreign_record_with_the_id_of_a_row_does_not_hide_the_row(alias: str, consumer: Consumer) -> None:
    own = row(alias, status=Status.PUBLISHED)
    foreign = record(encode_message(factories.envelope("somebody.else"), outbox_id=own, service=""))

    consumer.handle([foreign, record_of(alias, own)])

    assert effect_ids(alias) == [own]
    assert [kept.offset for kept in rejected(alias)] == [foreign.offset]
    assert consumer.totals.duplicates == 0


def test_rejected_records_of_a_batch_that_fails_are_kept_all_the_same(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    bad = row(alias, status=Status.PUBLISHED)
    toys.fail(bad, ValueError("no"))

    consumer.handle([record(b"garbage 1"), record_of(alias, bad), record(b"garbage 2")])

    assert sorted(bytes(kept.value) for kept in rejected(alias)) == [b"garbage 1", b"garbage 2"]
    assert get(alias, bad).retry_count == 1


def test_resolving_a_rejected_record_takes_it_off_the_open_list_once(alias: str, consumer: Consumer) -> None:
    consumer.handle([record(b"garbage")])
    [kept] = rejected(alias)
    store = RejectionStore("agent", alias)

    assert RejectionStore("task", alias).resolve([kept.pk], by="ann") == 0
    assert store.resolve([kept.pk], by="a" * 200) == 1
    assert store.resolve([kept.pk], by="bob") == 0
    assert rejected(alias)[0].resolved_by == "a" * 150


# --- the batch is a matter of speed only ---------------------------------------------------------------------------


def test_list_handler_gets_its_events_in_one_call(alias: str, toys: Toys, consumer: Consumer) -> None:
    ids = published(alias, 10, event_type=BULK, key=lambda number: f"key-{number % 3}")

    deliver(alias, consumer, ids)

    assert toys.calls == [tuple(ids)]


def test_batch_is_cut_where_its_payloads_are_too_large_for_one_transaction(alias: str, toys: Toys) -> None:
    size = len(get(alias, row(alias, event_type=BULK)).payload)
    consumer = factories.consumer(alias, toys, batch_bytes=3 * size)
    ids = published(alias, 8, event_type=BULK, key=str)

    deliver(alias, consumer, ids)

    assert toys.calls == [tuple(ids[at : at + 2]) for at in range(0, 8, 2)]
    assert effect_ids(alias) == ids


@pytest.mark.parametrize("size", [1, 7, 100])
def test_statements_of_a_batch_do_not_depend_on_its_size(alias: str, consumer: Consumer, size: int) -> None:
    ids = published(alias, size, event_type=BULK, key=lambda number: f"key-{number % 5}")
    records = records_of(alias, ids)

    with CaptureQueriesContext(connections[alias]) as captured:
        consumer.handle(records)

    statements = [query["sql"] for query in captured if query["sql"].split()[0] not in {"BEGIN", "COMMIT"}]
    # lock, look for predecessors, the handler's own, mark
    assert len(statements) == 4, statements
    assert len(captured) - len(statements) <= 2, "one transaction"
    assert effect_ids(alias) == ids


@pytest.mark.parametrize("size", [1, 7, 100])
def test_statements_of_a_batch_that_waits_do_not_depend_on_its_size(alias: str, consumer: Consumer, size: int) -> None:
    row(alias, due_in=HOUR)
    records = records_of(alias, published(alias, size))

    with CaptureQueriesContext(connections[alias]) as captured:
        consumer.handle(records)

    statements = [query["sql"] for query in captured if query["sql"].split()[0] not in {"BEGIN", "COMMIT"}]
    # lock, look for predecessors, read the one found, ask the clock, put back
    assert len(statements) == 5, statements
    assert consumer.totals.waited == size


class _Model:
    """What a consumer does, event by event and without a database."""

    def __init__(self, events: dict[int, SimpleNamespace]) -> None:
        self.events = events
        self.effects: list[int] = []

    def handle(self, row_id: int) -> None:
        event = self.events[row_id]
        if event.status not in {"pending", "published"} or (event.status == "pending" and not event.due):
            return
        if any(self._blocks(other, event) for other in self.events.values()):
            event.status, event.due = "pending", False
        elif event.unreadable:
            event.status, event.parks = "dead", event.event_type.startswith("toy.parked")
        elif event.retry_count < event.failures:
            event.retry_count += 1
            if event.discards or event.retry_count >= event.max_retry:
                event.status, event.parks = "dead", event.event_type.startswith("toy.parked")
            else:
                event.status, event.due = "pending", False
        else:
            event.status = "consumed"
            self.effects.append(row_id)

    @staticmethod
    def _blocks(other: SimpleNamespace, event: SimpleNamespace) -> bool:
        unfinished = other.status in {"pending", "published"} or (other.status == "dead" and other.parks)
        return other.key == event.key and other.id < event.id and unfinished


@pytest.mark.parametrize("seed", range(12))
def test_batches_give_what_event_by_event_would_have_given(alias: str, toys: Toys, seed: int) -> None:
    import random

    chance = random.Random(seed)
    consumer = factories.consumer(alias, toys, batch_bytes=chance.choice([300, 2000, 10**6]))
    model = _Model({})
    for _ in range(24):
        event = SimpleNamespace(
            key=chance.choice("abcd"),
            event_type=chance.choice([*HANDLED, BULK, BULK]),
            status="published",
            due=True,
            retry_count=0,
            max_retry=chance.randint(1, 3),
            failures=chance.choice([0, 0, 0, 0, 1, 2, 9]),
            discards=chance.random() < 0.2,
            unreadable=chance.random() < 0.1,
            parks=False,
        )
        event.id = row(
            alias,
            key=event.key,
            event_type=event.event_type,
            status=event.status,
            max_retry=event.max_retry,
            version="v9" if event.unreadable else "v2",
        )
        model.events[event.id] = event
        if event.failures:
            error: Exception = Discard("no") if event.discards else ValueError("no")
            toys.fail(event.id, error, times=event.failures)

    for _ in range(8):
        # As the relay sends: what is due in id order, over some partitions' worth of batches, some of it twice.
        batch = sorted(chance.choices(list(model.events), k=chance.randint(1, 40)))
        consumer.handle(records_of(alias, batch))
        for row_id in batch:
            model.handle(row_id)

        found = {
            each.id: (each.status, each.retry_count, each.parks_key)
            for each in AgentOutboxMessage.objects.using(alias).order_by("id")
        }
        assert found == {each.id: (each.status, each.retry_count, each.parks) for each in model.events.values()}
        for key in "abcd":
            assert effect_ids(alias, key=key) == [each for each in model.effects if model.events[each].key == key]
        make_due(alias)
        for event in model.events.values():
            event.due = True


# --- databases that are in the way ----------------------------------------------------------------------------------


def from_postgres(state: str, *, kind: type[Exception] = OperationalError) -> Exception:
    """Return an error as Django makes it from one of PostgreSQL's."""
    error = kind("text")
    error.__cause__ = type("Cause", (Exception,), {"sqlstate": state})()
    return error


TROUBLES = [
    ("mariadb", OperationalError(2006, "Server has gone away"), Trouble.OUTAGE),
    ("mariadb", OperationalError(2013, "Lost connection to server during query"), Trouble.OUTAGE),
    ("mariadb", OperationalError(2002, "Can't connect"), Trouble.OUTAGE),
    ("mariadb", OperationalError(1927, "Connection was killed"), Trouble.OUTAGE),
    ("mariadb", OperationalError(1040, "Too many connections"), Trouble.OUTAGE),
    ("mariadb", OperationalError(1053, "Server shutdown in progress"), Trouble.OUTAGE),
    ("mariadb", OperationalError(1290, "running with the --read-only option"), Trouble.OUTAGE),
    ("mariadb", InterfaceError(0, ""), Trouble.OUTAGE),
    ("mariadb", OperationalError(1205, "Lock wait timeout exceeded"), Trouble.CONTENTION),
    ("mariadb", OperationalError(1213, "Deadlock found"), Trouble.CONTENTION),
    ("mariadb", OperationalError(1020, "Record has changed since last read"), Trouble.CONTENTION),
    ("mariadb", IntegrityError(1062, "Duplicate entry"), Trouble.STATEMENT),
    ("mariadb", ProgrammingError(1146, "Table doesn't exist"), Trouble.STATEMENT),
    ("mariadb", LookupError("no database error"), Trouble.STATEMENT),
    ("postgres", from_postgres("57P01"), Trouble.OUTAGE),
    ("postgres", from_postgres("08006"), Trouble.OUTAGE),
    ("postgres", from_postgres("53300"), Trouble.OUTAGE),
    ("postgres", from_postgres("25006", kind=DatabaseError), Trouble.OUTAGE),
    ("postgres", OperationalError("server closed the connection unexpectedly"), Trouble.OUTAGE),
    ("postgres", InterfaceError("the connection is closed"), Trouble.OUTAGE),
    ("postgres", from_postgres("40P01"), Trouble.CONTENTION),
    ("postgres", from_postgres("40001"), Trouble.CONTENTION),
    ("postgres", from_postgres("55P03"), Trouble.CONTENTION),
    ("postgres", from_postgres("23505", kind=IntegrityError), Trouble.STATEMENT),
    ("postgres", from_postgres("42P01", kind=ProgrammingError), Trouble.STATEMENT),
    ("default", OperationalError("database is locked"), Trouble.CONTENTION),
    ("default", OperationalError("database table is locked"), Trouble.CONTENTION),
    ("default", OperationalError("disk I/O error"), Trouble.OUTAGE),
    ("default", OperationalError("unable to open database file"), Trouble.OUTAGE),
    ("default", OperationalError("attempt to write a readonly database"), Trouble.OUTAGE),
    ("default", OperationalError("database or disk is full"), Trouble.OUTAGE),
    ("default", IntegrityError("UNIQUE constraint failed: x.y"), Trouble.STATEMENT),
]


@pytest.mark.parametrize(("database_alias", "error", "trouble"), TROUBLES, indirect=["database_alias"], ids=str)
def test_it_is_known_whose_fault_a_database_error_is(alias: str, error: Exception, trouble: Trouble) -> None:
    connections[alias].close()

    assert trouble_of(error, alias) is trouble


def test_statement_that_is_wrong_is_nobody_elses_fault_while_the_database_is_there(alias: str) -> None:
    with pytest.raises(DatabaseError) as caught, connections[alias].cursor() as cursor:
        cursor.execute("SELECT nothing FROM nowhere")

    assert trouble_of(caught.value, alias) is Trouble.STATEMENT


def deadlock_of(alias: str) -> Exception:
    """Return the error of the alias's driver for a lost deadlock."""
    vendor = connections[alias].vendor
    if vendor == "mysql":
        return OperationalError(1213, "Deadlock found when trying to get lock; try restarting transaction")
    if vendor == "sqlite":
        return OperationalError("database is locked")
    error = OperationalError("deadlock detected")
    error.__cause__ = type("DeadlockDetected", (Exception,), {"sqlstate": "40P01"})()
    return error


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


@pytest.mark.parametrize("database_alias", ["mariadb", "postgres"], indirect=True)
def test_rows_that_somebody_else_holds_are_waited_for_and_cost_nothing(
    alias: str, toys: Toys, consumer: Consumer
) -> None:
    first, held, third = published(alias, 3, key=str)
    other = second_connection(alias)
    impatient = {"mysql": "SET SESSION innodb_lock_wait_timeout = 0", "postgresql": "SET lock_timeout = '20ms'"}
    with connections[alias].cursor() as cursor:
        cursor.execute(impatient[connections[alias].vendor])
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute("SELECT id FROM agent_outbox_messages WHERE id = %s FOR UPDATE", [held])
        with pytest.raises(DatabaseError) as caught:
            deliver(alias, consumer, [first, held, third])
        assert trouble_of(caught.value, alias) is Trouble.CONTENTION
        other.rollback()
    finally:
        other.close()
        connections[alias].close()  # and with it the session's impatience
    deliver(alias, consumer, [first, held, third])

    assert sorted(effect_ids(alias)) == [first, held, third]
    assert {get(alias, each).retry_count for each in (first, held, third)} == {0}


@pytest.mark.parametrize("database_alias", ["mariadb"], indirect=True)
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


BREAKS = [("mariadb", kill_own_connection), ("postgres", kill_own_connection), ("postgres", drop_own_connection)]


@pytest.mark.parametrize(("database_alias", "breaks_it"), BREAKS, indirect=["database_alias"])
def test_connection_that_breaks_between_two_batches_is_opened_again(
    alias: str, toys: Toys, stop: RecordingStop, breaks_it: Callable[[str], None]
) -> None:
    ids = published(alias, 2)
    consumer = factories.consumer(alias, toys, subscribe=subscribing(_Scripted(records_of(alias, ids))))
    breaks_it(alias)

    consumer.run(stop, max_events=2)

    assert effect_ids(alias) == ids
    assert len(stop.pauses) == 1


class _Hidden(Exception):  # noqa: N818
    """What a handler may make of a database error."""


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
    consumer = factories.consumer(alias, toys, broker=broker)
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


# --- the loop ----------------------------------------------------------------------------------------------------


class _Scripted:
    """A subscription that gives and raises what a test says."""

    def __init__(self, *script: list[IncomingRecord] | Exception, commit: list[Exception | None] | None = None) -> None:
        self.script = list(script)
        self.commits = commit or []
        self.committed: list[IncomingRecord] = []
        self.closed = False

    def receive(self, *, max_records: int, timeout: timedelta) -> list[IncomingRecord]:
        step = self.script.pop(0) if self.script else []
        if isinstance(step, Exception):
            raise step
        return step[:max_records]

    def commit(self, records: Sequence[IncomingRecord]) -> None:
        error = self.commits.pop(0) if self.commits else None
        if error is not None:
            raise error
        self.committed += records

    def close(self) -> None:
        self.closed = True


def subscribing(*subscriptions: Subscription) -> Callable[[], Subscription]:
    each = iter(subscriptions)
    return lambda: next(each)


def test_offsets_are_committed_after_the_database(alias: str, toys: Toys) -> None:
    [row_id] = published(alias, 1)
    subscription = _Scripted(records_of(alias, [row_id]))
    seen: list[str] = []
    real_commit = subscription.commit

    def commit(records: Sequence[IncomingRecord]) -> None:
        seen.append(get(alias, row_id).status)
        real_commit(records)

    subscription.commit = commit  # type: ignore[method-assign]
    consumer = factories.consumer(alias, toys, subscribe=subscribing(subscription))

    assert consumer.step(10) is True
    assert consumer.step(10) is False
    assert seen == ["consumed"]
    assert len(subscription.committed) == 1


def test_commit_that_fails_is_made_up_for_without_a_second_effect(alias: str, toys: Toys, stop: RecordingStop) -> None:
    ids = published(alias, 2)
    records = records_of(alias, ids)
    subscription = _Scripted(records, records, commit=[BrokerUnavailableError("away"), None])
    consumer = factories.consumer(alias, toys, subscribe=subscribing(subscription))

    consumer.run(stop, max_events=4)

    assert effect_ids(alias) == ids
    assert subscription.committed == records
    assert subscription.closed


def test_broker_that_goes_away_is_waited_for(alias: str, toys: Toys, stop: RecordingStop) -> None:
    ids = published(alias, 2)
    away = BrokerUnavailableError("away")
    subscription = _Scripted(away, away, records_of(alias, ids))
    consumer = factories.consumer(alias, toys, subscribe=subscribing(subscription))

    consumer.run(stop, max_events=2)

    assert effect_ids(alias) == ids
    assert {get(alias, each).retry_count for each in ids} == {0}
    assert stop.pauses[0] < stop.pauses[1], "the pauses grow"


@pytest.mark.parametrize("lost_at", ["receive", "commit"])
def test_lost_subscription_is_followed_by_a_new_one(alias: str, toys: Toys, stop: RecordingStop, lost_at: str) -> None:
    ids = published(alias, 2)
    records = records_of(alias, ids)
    lost = LostSubscriptionError("fenced")
    first = _Scripted(lost) if lost_at == "receive" else _Scripted(records, commit=[lost])
    second = _Scripted(records)
    consumer = factories.consumer(alias, toys, subscribe=subscribing(first, second))

    consumer.run(stop, max_events=2 if lost_at == "receive" else 4)

    assert effect_ids(alias) == ids
    assert first.closed
    assert second.committed == records


def test_database_that_goes_away_leaves_the_records_in_hand(alias: str, toys: Toys, stop: RecordingStop) -> None:
    ids = published(alias, 2)
    subscription = _Scripted(records_of(alias, ids))
    consumer = factories.consumer(alias, toys, subscribe=subscribing(subscription))
    real_handle = consumer.handle
    troubles = iter([OperationalError(2006, "gone"), OperationalError(2013, "lost")])

    def handle(records: Sequence[IncomingRecord]) -> None:
        for error in troubles:
            cause = type("Gone", (Exception,), {"sqlstate": "57P01"})()
            text = {"sqlite": OperationalError("disk I/O error")}.get(connections[alias].vendor, error)
            raise text from cause
        real_handle(records)

    consumer.handle = handle  # type: ignore[method-assign]
    consumer.run(stop, max_events=2)

    assert effect_ids(alias) == ids
    assert len(subscription.committed) == 2


def test_statement_that_the_library_got_wrong_ends_the_process(alias: str, toys: Toys, stop: RecordingStop) -> None:
    consumer = factories.consumer(alias, toys, subscribe=subscribing(_Scripted(records_of(alias, published(alias, 1)))))

    def wrong(_records: Sequence[IncomingRecord]) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT nothing FROM nowhere")

    consumer.handle = wrong  # type: ignore[method-assign]
    with pytest.raises(DatabaseError):
        consumer.run(stop)


def test_paused_consumer_receives_nothing_until_it_is_let_go_on(alias: str, toys: Toys, clock: ManualClock) -> None:
    ids = published(alias, 1)
    subscription = _Scripted(records_of(alias, ids))
    consumer = factories.consumer(alias, toys, subscribe=subscribing(subscription), clock=clock)
    ServiceSwitch.objects.using(alias).create(service="agent", consumer_paused=True)

    assert consumer.step(10) is False
    ServiceSwitch.objects.using(alias).update(consumer_paused=False)
    assert consumer.step(10) is False, "the switch is read on the heartbeat"
    clock.advance(60)
    assert consumer.step(10) is True
    assert effect_ids(alias) == ids


def test_consumer_is_seen_while_it_works_and_gone_when_it_ends(alias: str, toys: Toys, stop: RecordingStop) -> None:
    seen: list[list[str]] = []
    toys.before = lambda _deliveries: seen.append(
        list(Worker.objects.using(alias).values_list("service", "role", named=False))
    )
    subscription = _Scripted(records_of(alias, published(alias, 1)))
    factories.consumer(alias, toys, subscribe=subscribing(subscription)).run(stop, max_events=1)

    assert seen == [[("agent", "consumer")]]
    assert not Worker.objects.using(alias).exists()


def test_loop_ends_when_nothing_is_left_and_not_before(alias: str, toys: Toys, stop: RecordingStop) -> None:
    ids = published(alias, 2)
    subscription = _Scripted(records_of(alias, ids[:1]), [], records_of(alias, ids[1:]))
    answers = iter([False, True])

    factories.consumer(alias, toys, subscribe=subscribing(subscription)).run(stop, is_drained=lambda: next(answers))

    assert effect_ids(alias) == ids


def test_paused_loop_waits_and_ends_where_it_would_wait_for_nothing(
    alias: str, toys: Toys, stop: RecordingStop
) -> None:
    ServiceSwitch.objects.using(alias).create(service="agent", consumer_paused=True)
    subscription = _Scripted(records_of(alias, published(alias, 1)))
    real_wait = stop.wait

    def wait(pause: timedelta) -> bool:
        stop.set()
        return real_wait(pause)

    stop.wait = wait  # type: ignore[method-assign]
    factories.consumer(alias, toys, subscribe=subscribing(subscription)).run(stop)
    assert stop.pauses, "without a pause it would turn as fast as it can"

    factories.consumer(alias, toys, subscribe=subscribing(subscription)).run(RecordingStop(), is_drained=lambda: False)
    assert effect_ids(alias) == []


def test_stop_ends_the_loop_after_the_batch_in_hand(alias: str, toys: Toys, stop: RecordingStop) -> None:
    ids = published(alias, 4)
    subscription = _Scripted(records_of(alias, ids[:2]), records_of(alias, ids[2:]))
    toys.before = lambda _deliveries: stop.set()

    factories.consumer(alias, toys, subscribe=subscribing(subscription)).run(stop)

    assert effect_ids(alias) == ids[:2]
    assert len(subscription.committed) == 2
    assert subscription.closed


# --- telling -----------------------------------------------------------------------------------------------------


def test_listeners_hear_what_was_committed_and_cannot_break_it(alias: str, toys: Toys, consumer: Consumer) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    names = ("consumed", "retried", "waited", "buried", "rejected")

    def listener_of(name: str) -> Callable[..., None]:
        def listen(sender: str, signal: Any, **fields: Any) -> None:
            heard.append((name, fields | {"open": connections[alias].in_atomic_block}))
            raise RuntimeError("a listener's own fault")

        return listen

    listeners = {name: listener_of(name) for name in names}
    good, failing, waiting, dying = (row(alias, key=key, status=Status.PUBLISHED) for key in ("a", "b", "b", "c"))
    toys.fail(failing, ValueError("no"))
    toys.fail(dying, Discard("never"))
    for name, listener in listeners.items():
        getattr(signals, name).connect(listener)
    try:
        consumer.handle([*records_of(alias, [good, failing, waiting, dying]), record(b"garbage")])
    finally:
        for name, listener in listeners.items():
            getattr(signals, name).disconnect(listener)

    assert {name for name, _ in heard} == set(names)
    assert not any(fields["open"] for _, fields in heard)
    by_name = dict(heard)
    assert by_name["consumed"]["event_types"] == {NOTE: 1}
    assert (by_name["retried"]["outbox_id"], by_name["retried"]["attempt"]) == (failing, 1)
    assert (by_name["buried"]["outbox_id"], by_name["buried"]["reason"]) == (dying, "Discard: never")
    assert consumer.totals.handled == 5


def test_events_of_a_handler_continue_the_trace_of_its_event(alias: str, toys: Toys, consumer: Consumer) -> None:
    traced, untraced = (
        row(alias, key="a", traceparent="00-aa-bb-01", status=Status.PUBLISHED),
        row(alias, key="b", status=Status.PUBLISHED),
    )
    seen: list[str] = []
    toys.before = lambda _deliveries: seen.append(current_traceparent())

    deliver(alias, consumer, [traced, untraced])

    assert seen == ["00-aa-bb-01", ""]
    assert current_traceparent() == ""


# --- the newest snapshot wins ----------------------------------------------------------------------------------------


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
    from outbox.contracts import contracts
    from outbox.handlers import handlers

    consumer = factories.consumer(
        alias, SimpleNamespace(contracts=contracts, handlers=handlers, retry_policy=None, parks_key=None)
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
