"""Blocked keys on every database: what is noted, who finds it, and which events a release makes due."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from outbox.lifecycle import Status
from outbox.models import BlockedKey
from outbox.storage.blocked_keys import WINDOW
from outbox.storage.repository import OutboxRepository
from tests.factories import change, database_now, get, row, rows
from tests.repositories import FAILURE, locked
from tests.transactions import held_elsewhere

HOUR = timedelta(hours=1)


def notes(alias: str) -> dict[str, tuple[int, int]]:
    """Return, by key, what blocks it and how many events are held."""
    return {each.message_key: (each.blocker_id, each.held) for each in BlockedKey.objects.using(alias).all()}


def due(alias: str, ids: list[int]) -> list[int]:
    now = database_now(alias)
    return [each for each in ids if get(alias, each).next_retry_at <= now]


def found_by(repository: OutboxRepository, *ids: int) -> list[int]:
    return repository.predecessors(locked(repository, *ids)).blocked_keys


def test_key_is_noted_once_with_what_blocks_it_last(alias: str, repository: OutboxRepository) -> None:
    first, second, _third = rows(alias, 3, due_in=HOUR)
    other = row(alias, key="other")

    assert repository.note_blocked({"k": first, "other": other}, joining={"other": 2}) == 6
    assert notes(alias) == {"k": (first, 3), "other": (other, 3)}
    assert repository.note_blocked({"k": second}, joining={}) == 6
    assert notes(alias)["k"] == (second, 3)


def test_predecessors_of_a_batch_come_with_the_notes_of_its_keys(alias: str, repository: OutboxRepository) -> None:
    ids = {key: row(alias, key=key) for key in ("k", "K", "k ", "ä", "free")}
    repository.note_blocked({key: row_id for key, row_id in ids.items() if key != "free"}, joining={})
    BlockedKey.objects.using(alias).create(service="memory", message_key="free", blocker_id=1, held=1)

    for key, row_id in ids.items():
        keys = BlockedKey.objects.using(alias).filter(pk__in=found_by(repository, row_id))
        assert [each.message_key for each in keys] == ([key] if key != "free" else [])
    with CaptureQueriesContext(connections[alias]) as captured:
        found_by(repository, ids["free"])
    assert len([each for each in captured if "blocked_keys" in each["sql"]]) == 1
    assert len([each for each in captured if "outbox_messages" in each["sql"]]) == 2, "one to lock, one to look"


def test_release_makes_the_next_ones_of_the_window_due(alias: str, repository: OutboxRepository) -> None:
    blocker, *held = rows(alias, WINDOW + 10, due_in=HOUR)
    repository.note_blocked({"k": blocker}, joining={})
    change(alias, [blocker], status=Status.CONSUMED)

    assert repository.release_behind(found_by(repository, held[0]), {"k": blocker}) == WINDOW
    assert due(alias, held) == held[:WINDOW]
    assert notes(alias) == {"k": (held[0], WINDOW + 9)}

    change(alias, held[:4], status=Status.CONSUMED)
    assert repository.release_behind(found_by(repository, held[9]), {"k": held[3]}) == 4, "as many as are finished"
    assert due(alias, held) == held[: WINDOW + 4]

    change(alias, held[4:100], status=Status.CONSUMED)
    assert repository.release_behind(found_by(repository, held[101]), {"k": held[99]}) == 5
    assert notes(alias) == {}, "nothing is held any more"


def test_nothing_is_released_before_what_blocks_the_key_is_finished(alias: str, repository: OutboxRepository) -> None:
    before, blocker, held = rows(alias, 3, due_in=HOUR)
    repository.note_blocked({"k": blocker}, joining={})
    change(alias, [before], status=Status.CONSUMED)

    noted = found_by(repository, held)
    assert repository.release_behind(noted, {"k": before}) == 0
    assert repository.release_behind(noted, {"other": blocker}) == 0
    assert repository.release_behind(noted, {}) == 0
    assert (due(alias, [held]), notes(alias)["k"][0]) == ([], blocker)


@pytest.mark.parametrize("columns", [{"retry_count": 1}, {"interruptions": 1}])
def test_first_event_that_is_in_a_back_off_of_its_own_keeps_the_key_blocked(
    alias: str, repository: OutboxRepository, columns: dict[str, int]
) -> None:
    blocker = row(alias, status=Status.CONSUMED)
    failing, held = row(alias, due_in=HOUR, **columns), row(alias, due_in=HOUR)
    repository.note_blocked({"k": blocker}, joining={})

    assert repository.release_behind(found_by(repository, held), {"k": blocker}) == 0
    assert due(alias, [failing, held]) == []
    assert list(notes(alias)) == ["k"]


def test_release_leaves_alone_what_is_sent_or_in_a_back_off_or_of_another_key(
    alias: str, repository: OutboxRepository
) -> None:
    sent = row(alias, status=Status.PUBLISHED, due_in=HOUR)
    held, failing = row(alias, due_in=HOUR), row(alias, due_in=HOUR, retry_count=2)
    later = row(alias, due_in=HOUR)
    others = [row(alias, key=key, due_in=HOUR) for key in ("K", "other")]

    assert repository.release({"k": 0}) == 2
    assert due(alias, [sent, held, failing, later, *others]) == [held, later]


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_row_that_somebody_holds_is_passed_over_and_released_by_the_next_one(
    alias: str, repository: OutboxRepository
) -> None:
    """The deferral of it is not committed yet: there is nothing to wait for."""
    blocker, crossing, held = rows(alias, 3, due_in=HOUR)
    change(alias, [blocker], status=Status.CONSUMED)
    with held_elsewhere(alias, lambda: repository.lock([crossing], max_length=1)):
        assert repository.release({"k": blocker}) == 1
    assert due(alias, [crossing, held]) == [held]

    assert repository.release({"k": blocker}) == 1
    assert due(alias, [crossing, held]) == [crossing, held]


def test_of_many_keys_at_once_fewer_events_each_are_released(alias: str, repository: OutboxRepository) -> None:
    keys = [f"k-{number}" for number in range(60)]
    ids = rows(alias, 600, key=lambda number: keys[number % 60], due_in=HOUR)

    assert repository.release(dict.fromkeys(keys, 0)) == 8 * 60
    assert due(alias, ids) == ids[: 8 * 60]
    assert notes(alias) == {key: (ids[place], 10) for place, key in enumerate(keys)}
    assert repository.release(dict.fromkeys(keys[:30], 0)) == 30 * 2, "of fewer keys, more of each"
    assert len(notes(alias)) == 30


def refuse(repository: OutboxRepository, row_id: int) -> int:
    claim = repository.claim(shards=None, limit=1, max_length=0)
    return repository.bury_refused(row_id, failure=FAILURE, parks_key=False, claimed_at=claim.claimed_at)


Decision = Callable[[OutboxRepository, int], int]
DECISIONS: dict[str, Decision] = {
    "give up": lambda repository, row_id: repository.give_up([row_id], by="ann", reason="too old"),
    "refused by the broker": refuse,
}


@pytest.mark.parametrize("decision", DECISIONS)
def test_who_takes_a_blocker_out_of_the_way_releases_what_waits_behind_it(
    alias: str, repository: OutboxRepository, decision: str
) -> None:
    before = row(alias, due_in=HOUR, created_at=database_now(alias))
    is_dead = decision == "give up"
    blocker = row(alias, status=Status.DEAD if is_dead else Status.PENDING, parks_key=is_dead)
    held, backing_off = row(alias, due_in=HOUR), row(alias, due_in=HOUR, retry_count=1)
    of_another_key = row(alias, key="other", due_in=HOUR)
    repository.note_blocked({"k": blocker}, joining={})

    assert DECISIONS[decision](repository, blocker) == 1

    assert due(alias, [before, held, backing_off, of_another_key]) == [held], "nobody before it, too"
    assert notes(alias) == {}


def test_release_is_undone_with_the_transaction_that_finished_the_blocker(
    alias: str, repository: OutboxRepository
) -> None:
    blocker, held = rows(alias, 2, due_in=HOUR)
    repository.note_blocked({"k": blocker}, joining={})
    with transaction.atomic(using=alias):
        repository.mark_consumed([blocker])
        assert repository.release({"k": blocker}) == 1
        transaction.set_rollback(True, using=alias)

    assert due(alias, [held]) == []
    assert list(notes(alias)) == ["k"]
