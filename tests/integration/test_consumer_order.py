"""The consumer on every database: order per key, and nothing overtakes a parked event."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from agent_events.agent.models import AgentOutboxMessage
from outbox import Discard
from outbox.consumer.loop import Consumer
from outbox.lifecycle import Status
from outbox.models import BlockedKey
from outbox.storage.blocked_keys import WINDOW
from outbox.wire.envelope import encode_envelope
from tests import factories
from tests.consumers import deliver, published
from tests.factories import change, database_now, get, make_due, records_of, row, statuses
from tests.toys import BULK, NOTE, OTHER, PARKED, PARKED_BULK, Toys, effect_ids

# --- order per key -----------------------------------------------------------------------------------------------


def test_thousands_that_wait_for_one_are_sent_again_a_few_at_a_time(alias: str, consumer: Consumer) -> None:
    """All at once, again and again, they would fill the topic and keep the one from being reached."""
    late, *waiting = published(alias, 201)

    deliver(alias, consumer, waiting)

    now = database_now(alias)
    dues = [get(alias, each).next_retry_at for each in waiting]
    assert dues == sorted(dues)
    assert dues[0] - now < timedelta(seconds=10), "the first of them waits about as long as the late one is late"
    in_seconds = Counter(round((due - dues[0]).total_seconds()) for due in dues)
    assert max(in_seconds.values()) <= 25, "few in each second"
    assert [each.held for each in BlockedKey.objects.using(alias).all()] == [200]

    change(alias, waiting, next_retry_at=now + timedelta(hours=1))  # nobody comes because of the time
    turn, rounds = [late], list[int]()
    while turn:
        deliver(alias, consumer, turn)
        now = database_now(alias)
        found = [get(alias, each) for each in waiting]
        turn = [each.pk for each in found if each.status == Status.PENDING and each.next_retry_at <= now]
        rounds.append(len(turn))
    assert effect_ids(alias) == [late, *waiting]
    assert rounds == [WINDOW, 200 - WINDOW, 0], "and when their turn has come they are released"
    assert consumer.totals.waited == len(waiting), "each waited once"
    assert not BlockedKey.objects.using(alias).exists()


def test_release_that_crossed_a_deferral_is_made_good_by_what_comes_next(alias: str, consumer: Consumer) -> None:
    """The note of the deferral was not committed yet when its blocker was finished, and a thousand are held."""
    blocker, crossed, waiting = published(alias, 3)
    deliver(alias, consumer, [crossed])
    BlockedKey.objects.using(alias).all().delete()
    deliver(alias, consumer, [blocker])
    change(alias, [crossed], next_retry_at=database_now(alias) + timedelta(hours=1))

    deliver(alias, consumer, [waiting])

    assert {get(alias, each).next_retry_at <= database_now(alias) for each in (crossed, waiting)} == {True}
    deliver(alias, consumer, [crossed, waiting])
    assert effect_ids(alias) == [blocker, crossed, waiting]


def test_event_that_others_locks_put_off_is_not_taken_for_held(alias: str, consumer: Consumer) -> None:
    contended, waiting = published(alias, 2)
    due_at = database_now(alias) + timedelta(seconds=31)
    change(alias, [contended], status=Status.PENDING, next_retry_at=due_at)

    deliver(alias, consumer, [waiting])

    assert get(alias, contended).next_retry_at == due_at


def test_clean_batch_asks_nothing_about_blocked_keys(alias: str, consumer: Consumer) -> None:
    ids = published(alias, 4, key=str)
    records = records_of(alias, ids)
    with CaptureQueriesContext(connections[alias]) as captured:
        consumer.handle(records)

    assert effect_ids(alias) == ids
    assert len([each for each in captured if "blocked_keys" in each["sql"]]) == 1
    assert len([each for each in captured if "outbox_messages" in each["sql"]]) == 3, "to lock, to look, to mark"


def test_predecessor_whose_record_is_lost_is_sent_again_by_who_waits_for_it(alias: str, toys: Toys) -> None:
    """Long before every consumer has certainly passed it, which in a backlog may take for ever."""
    lost, waiting, fresh, behind_fresh = published(alias, 2) + published(alias, 2, key="fresh")
    an_hour_ago = database_now(alias) - timedelta(hours=1)
    change(alias, [lost], published_at=an_hour_ago, updated_at=an_hour_ago)
    consumer = factories.consumer(alias, toys, redeliver_after=timedelta(minutes=5))

    deliver(alias, consumer, [waiting, behind_fresh])

    assert statuses(alias) == dict.fromkeys([lost, waiting, behind_fresh], "pending") | {fresh: "published"}
    assert get(alias, lost).next_retry_at <= database_now(alias)
    deliver(alias, consumer, [lost])
    deliver(alias, consumer, [waiting])
    assert effect_ids(alias) == [lost, waiting]
    assert get(alias, lost).retry_count == 0


def test_predecessor_that_is_parked_is_not_sent_again(alias: str, toys: Toys) -> None:
    parked, waiting = published(alias, 2, event_type=PARKED)
    toys.fail(parked, Discard("no"))
    consumer = factories.consumer(alias, toys, redeliver_after=timedelta(minutes=5))
    deliver(alias, consumer, [parked])
    change(alias, [parked], updated_at=database_now(alias) - timedelta(hours=1))

    deliver(alias, consumer, [waiting])

    assert get(alias, parked).status == Status.DEAD


@pytest.mark.parametrize(("event_type", "is_woken"), [(NOTE, True), (PARKED, False)])
def test_next_one_is_woken_when_the_one_before_it_dies(
    alias: str, toys: Toys, consumer: Consumer, event_type: str, is_woken: bool
) -> None:
    bad, waiting = published(alias, 2, event_type=event_type)
    deliver(alias, consumer, [waiting])
    change(alias, [waiting], next_retry_at=database_now(alias) + timedelta(hours=1))
    toys.fail(bad, Discard("never"))

    deliver(alias, consumer, [bad])

    assert get(alias, bad).status == Status.DEAD
    assert (get(alias, waiting).next_retry_at <= database_now(alias)) is is_woken


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
