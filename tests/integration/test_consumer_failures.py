"""An event that fails counts for itself only: it is tried again or dies, and says why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from agent_events.agent.models import AgentOutboxMessage, AgentStateSnapshotRecord
from outbox import Delivery, Discard, Retry
from outbox.consumer.loop import Consumer
from outbox.lifecycle import Status
from outbox.wire.nesting import NESTING_LIMIT
from tests import factories
from tests.consumers import deliver, published
from tests.factories import database_now, get, make_due, row, statuses
from tests.toys import BULK, NOTE, UNHANDLED, Toys, effect_ids
from tests.waiting import wait_until

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


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


def test_text_of_an_error_makes_no_log_of_its_own(
    alias: str, toys: Toys, consumer: Consumer, caplog: pytest.LogCaptureFixture
) -> None:
    """A text of 50 MB was written five times over, and its line breaks began lines of their own."""
    again, dying = published(alias, 2, key=str)
    factories.change(alias, dying, max_retry=1)
    toys.fail(again, ValueError("first\n2026-01-01 ERROR outbox.relay.loop forged \ud800" + "x" * 5_000_000))
    toys.fail(dying, Discard("second\r\x1b[2J" + "y" * 5_000_000))

    deliver(alias, consumer, [again, dying])

    lines = [record.getMessage() for record in caplog.records if record.name.startswith("outbox")]
    assert [line for line in lines if f"row {again} (toy.note) failed, attempt 1" in line]
    assert [line for line in lines if f"row {dying} (toy.note) is dead" in line]
    assert all(line.isprintable() for line in lines)
    assert sum(map(len, caplog.text.splitlines())) < 20_000
    assert (get(alias, again).status, get(alias, dying).status) == ("pending", "dead")


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


def test_json_of_any_depth_is_read_or_dead_and_stops_no_worker(alias: str, consumer: Consumer) -> None:
    """Other software goes deeper than `publish` does; how deep a decoder follows hangs on the frames it runs in."""
    depths = [*range(150, 1_050, 25), 5_000, 50_000]
    as_read = NESTING_LIMIT - 1  # the payload itself is a level
    start = '{"event_version": "v2", "payload": {"key": "k", "number": 1, "x": '
    ids = [
        row(alias, key=str(depth), stored=f"{start}{'[' * depth}{']' * depth}}}}}", status=Status.PUBLISHED)
        for depth in [as_read, *depths]
    ]

    deliver(alias, consumer, ids)

    found = [get(alias, each) for each in ids]
    assert found[0].status == "consumed", "what publish would take is read"
    assert {each.status for each in found} == {"consumed", "dead"}
    assert all("recursion" in each.last_error for each in found if each.status == "dead")


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
