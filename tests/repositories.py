"""What tests of the repository share: rows as they are published, claimed and locked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from agent_events.agent.models import AgentOutboxMessage
from outbox.lifecycle import Status
from outbox.storage.repository import OutboxRepository
from outbox.storage.rows import Failure, Locked, NewRow
from tests.factories import database_now, row
from tests.toys import NOTE

SECOND = timedelta(seconds=1)
FAILURE = Failure("ValueError: no", "ValueError", "Traceback: no")
UNLIMITED = 10**9


def new_row(number: int, **columns: Any) -> NewRow:
    values: dict[str, Any] = {
        "event_type": NOTE,
        "message_key": f"key-{number}",
        "payload": b'{"payload": {}}',
        "max_retry": 7,
        "traceparent": "00-aa-bb-01",
    }
    return NewRow(**(values | columns))


def published_row(alias: str, *, ago: timedelta, due_in: timedelta = -SECOND, **columns: Any) -> int:
    values = {"published_at": database_now(alias) - ago, "status": Status.PUBLISHED} | columns
    return row(alias, due_in=due_in, **values)


def columns_of(alias: str, row_id: int) -> dict[str, Any]:
    return AgentOutboxMessage.objects.using(alias).values().get(pk=row_id)


def claim_ids(repository: OutboxRepository, *, limit: int = 100, **claim: Any) -> list[int]:
    return [due.id for due in repository.claim(shards=None, limit=limit, max_length=UNLIMITED, **claim).rows]


def note_large_texts(monkeypatch: pytest.MonkeyPatch, length: int) -> list[int]:
    """Return a list to which each statement of a repository adds how many texts of ``length`` or more it brought."""
    noted: list[int] = []
    fetch = OutboxRepository._fetch

    def fetch_and_note(repository: OutboxRepository, *statement: Any) -> list[tuple[Any, ...]]:
        found = fetch(repository, *statement)
        noted.append(sum(isinstance(value, (str, bytes)) and len(value) >= length for each in found for value in each))
        return found

    monkeypatch.setattr(OutboxRepository, "_fetch", fetch_and_note)
    return noted


def locked(repository: OutboxRepository, *ids: int) -> list[Locked]:
    """Return rows as their consumer locks them, the transaction over again."""
    with transaction.atomic(using=repository.route.database):
        return repository.lock(ids, max_length=UNLIMITED)


def stale(row_id: int, **columns: Any) -> Locked:
    """Return a row as somebody locked it once."""
    as_it_was: dict[str, Any] = {
        "id": row_id,
        "event_type": NOTE,
        "message_key": "k",
        "status": Status.PUBLISHED,
        "retry_count": 0,
        "replay_count": 0,
        "max_retry": 20,
        "is_due": True,
        "traceparent": "",
        "payload": None,
        "payload_length": 0,
    }
    return Locked(**(as_it_was | columns))


def blockers_of(repository: OutboxRepository, *ids: int) -> dict[str, int]:
    return {key: blocker.id for key, blocker in repository.predecessors(locked(repository, *ids)).blockers.items()}
