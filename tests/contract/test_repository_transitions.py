"""Every transition starts from its legal states only, and leaves other rows alone: on every database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections

from outbox import lifecycle
from outbox.lifecycle import Status
from outbox.storage.repository import OutboxRepository
from tests.factories import database_now, row
from tests.repositories import FAILURE, columns_of, stale

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def _mark_published(repository: OutboxRepository, row_id: int) -> int:
    return repository.mark_published([row_id], claimed_at=raw_now(repository), redeliver_after=HOUR).count


def _redeliver(repository: OutboxRepository, _row_id: int) -> int:
    return repository.redeliver(shards=None, published_before=repository.now() + HOUR, limit=10)


APPLY: dict[lifecycle.Transition, Callable[[OutboxRepository, int], int]] = {
    lifecycle.MARK_PUBLISHED: _mark_published,
    lifecycle.CONSUME: lambda repository, row_id: repository.mark_consumed([row_id]),
    lifecycle.RETRY: lambda repository, row_id: repository.retry(
        stale(row_id), due_at=repository.now() + HOUR, failure=FAILURE
    ),
    lifecycle.WAIT: lambda repository, row_id: repository.wait([row_id], until=repository.now() + HOUR),
    lifecycle.INTERRUPT: lambda repository, row_id: repository.interrupt(stale(row_id), due_at=repository.now() + HOUR),
    lifecycle.REDELIVER: _redeliver,
    lifecycle.BURY: lambda repository, row_id: repository.bury(row_id, failure=FAILURE, parks_key=False),
    lifecycle.REPLAY: lambda repository, row_id: repository.replay([row_id]),
    lifecycle.GIVE_UP: lambda repository, row_id: repository.give_up([row_id], by="ann", reason="too old"),
    lifecycle.EDIT: lambda repository, row_id: repository.edit(row_id, payload=b'{"payload": 2}'),
}


def raw_now(repository: OutboxRepository) -> Any:
    """Return the database's clock as a claim gives it."""
    from outbox.storage.dialects import dialect_of

    connection = connections[repository.route.database]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {dialect_of(connection).now}", [])
        return cursor.fetchone()[0]


def test_every_transition_is_tested() -> None:
    assert set(APPLY) == set(lifecycle.TRANSITIONS)


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("transition", lifecycle.TRANSITIONS, ids=lambda transition: transition.name)
def test_transition_is_applied_from_its_legal_states_only(
    alias: str, repository: OutboxRepository, transition: lifecycle.Transition, status: Status
) -> None:
    # Published long enough ago, and due, so that nothing but the status can be in the way.
    past = database_now(alias) - MINUTE
    row_id = row(alias, status=status, next_retry_at=past, published_at=past, updated_at=past)
    before = columns_of(alias, row_id)

    moved = APPLY[transition](repository, row_id)

    after = columns_of(alias, row_id)
    if status in transition.sources:
        assert moved == 1
        assert after["status"] == transition.target
        assert after["updated_at"] > before["updated_at"]
    else:
        assert moved == 0
        assert after == before


@pytest.mark.parametrize("transition", lifecycle.TRANSITIONS, ids=lambda transition: transition.name)
def test_transition_leaves_other_rows_alone(
    alias: str, repository: OutboxRepository, transition: lifecycle.Transition
) -> None:
    others = [row(alias, key=f"other-{status}", status=status, due_in=HOUR) for status in Status]
    before = [columns_of(alias, other) for other in others]
    past = database_now(alias) - MINUTE
    row_id = row(alias, status=transition.sources[0], next_retry_at=past, published_at=past)

    APPLY[transition](repository, row_id)

    assert [columns_of(alias, other) for other in others] == before


@pytest.mark.parametrize("move", ["mark_consumed", "replay"])
def test_moving_nothing_is_no_statement(
    alias: str, repository: OutboxRepository, move: str, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(0, connection=connections[alias]):
        assert getattr(repository, move)([]) == 0
