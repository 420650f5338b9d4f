"""What operators ask of the repository, on every database: replay, give up, edit, prune."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction

from outbox.lifecycle import Status
from outbox.storage.repository import OutboxRepository
from tests import factories
from tests.factories import database_now, get, row, rows
from tests.repositories import FAILURE, UNLIMITED, blockers_of, claim_ids, locked
from tests.transactions import OtherTransaction

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


# --- operator ----------------------------------------------------------------------------------------------------


def test_replay_gives_a_row_all_its_attempts_again(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias, status=Status.PUBLISHED, retry_count=5)
    repository.bury(row_id, failure=FAILURE, parks_key=True)
    repository.give_up([row_id], by="ann", reason="too old")

    assert repository.replay([row_id]) == 1

    found = get(alias, row_id)
    assert (found.status, found.retry_count, found.parks_key) == ("pending", 0, False)
    assert found.replay_count == 1
    assert (found.dead_at, found.resolved_at, found.resolved_by, found.resolution) == (None, None, "", "")
    assert claim_ids(repository) == [row_id]


def test_row_that_is_replayed_still_holds_what_waits_behind_it(alias: str, repository: OutboxRepository) -> None:
    parked = row(alias, status=Status.DEAD, parks_key=True)
    waiting = row(alias, due_in=HOUR)

    repository.replay([parked])

    assert not locked(repository, waiting)[0].is_due, "it is released when the replayed row is finished"
    assert blockers_of(repository, waiting) == {"k": parked}


def test_giving_up_keeps_who_when_and_why_and_frees_the_key(alias: str, repository: OutboxRepository) -> None:
    row_id = row(alias, status=Status.DEAD, parks_key=True)

    assert repository.give_up([row_id], by="a" * 200, reason="w" * 600) == 1
    assert repository.give_up([row_id], by="bob", reason="again") == 0

    found = get(alias, row_id)
    assert (found.status, found.parks_key) == ("dead", False)
    assert (found.resolved_by, found.resolution) == ("a" * 150, "w" * 500)
    assert abs(found.resolved_at - database_now(alias)) < MINUTE
    assert blockers_of(repository, row(alias)) == {}


def test_edit_replaces_the_payload_of_a_dead_row(alias: str, repository: OutboxRepository) -> None:
    dead = row(alias, status=Status.DEAD)

    assert repository.edit(dead, payload='{"payload": "新"}'.encode()) == 1

    assert get(alias, dead).payload == '{"payload": "新"}'
    assert get(alias, dead).status == Status.DEAD


# --- prune -------------------------------------------------------------------------------------------------------


def test_prune_deletes_old_consumed_rows_only(alias: str, repository: OutboxRepository) -> None:
    old = database_now(alias) - 2 * HOUR
    gone = row(alias, status=Status.CONSUMED, consumed_at=old, created_at=old)
    kept = [row(alias, status=status, created_at=old) for status in set(Status) - {Status.CONSUMED}]
    kept.append(row(alias, status=Status.CONSUMED, consumed_at=database_now(alias), created_at=old))

    pruned = repository.prune(consumed_before=repository.now() - HOUR, after_id=0, limit=100)

    assert pruned.deleted == 1
    assert sorted(factories.statuses(alias)) == sorted(kept)
    assert gone not in kept


def test_prune_goes_through_the_table_in_steps(alias: str, repository: OutboxRepository) -> None:
    old = database_now(alias) - 2 * HOUR
    rows(alias, 7, status=Status.CONSUMED, consumed_at=old, created_at=old)
    unfinished = row(alias, created_at=old)
    young = row(alias)
    after_id: int | None = 0
    deleted = steps = 0
    while after_id is not None:
        pruned = repository.prune(consumed_before=repository.now() - HOUR, after_id=after_id, limit=3)
        deleted, steps, after_id = deleted + pruned.deleted, steps + 1, pruned.last_id

    assert deleted == 7
    assert steps <= 4
    assert sorted(factories.statuses(alias)) == [unfinished, young]


def test_prune_ends_where_rows_are_young(alias: str, repository: OutboxRepository) -> None:
    rows(alias, 4)

    assert repository.prune(consumed_before=repository.now() - HOUR, after_id=0, limit=2).last_id is None
    assert repository.prune(consumed_before=repository.now() - HOUR, after_id=10**12, limit=2).last_id is None


@pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)
def test_prune_passes_over_locked_rows(alias: str, repository: OutboxRepository) -> None:
    old = database_now(alias) - 2 * HOUR
    held, free = rows(alias, 2, status=Status.CONSUMED, consumed_at=old, created_at=old)
    with transaction.atomic(using=alias):
        repository.lock([held], max_length=UNLIMITED)
        pruner = OtherTransaction(
            alias, lambda: repository.prune(consumed_before=repository.now() - HOUR, after_id=0, limit=10)
        )
        pruner.start()

        assert pruner.result().deleted == 1

    assert list(factories.statuses(alias)) == [held]
    assert free != held
