"""Handlers that misbehave once they have written, and the look at what became of their events."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from django.db import connections

from agent_events.agent.models import AgentStateSnapshotRecord
from outbox.declarations.handlers import Handler
from tests.factories import get, statuses
from tests.toys import BULK, NOTE, Toys, effect_ids

Misbehave = Callable[[str], None]
"""What a handler does to the database of this alias."""


def let_misbehave(toys: Toys, row_ids: Collection[int], misbehave: Misbehave) -> None:
    """Have the handlers of these rows do something when they have written their effects."""
    for event_type in (NOTE, BULK):
        handler = toys.handlers.get(event_type)
        assert handler is not None
        toys.handlers.remove(event_type)
        toys.handlers.add(event_type, partial(_misbehaving, handler, row_ids, misbehave), batch=handler.batch)


def _misbehaving(handler: Handler, row_ids: Collection[int], misbehave: Misbehave, argument: Any) -> None:
    handler.function(argument)
    for each in argument if handler.batch else [argument]:
        if each.outbox_id in row_ids:
            misbehave(each.database)


def check_that_these_failed_alone(alias: str, ids: list[int], bad: set[int], error_class: str, reason: str) -> None:
    """Check that each of ``bad`` was charged once and says why, and that the others took effect once."""
    good = [each for each in ids if each not in bad]
    assert statuses(alias) == dict.fromkeys(ids, "consumed") | dict.fromkeys(bad, "pending")
    assert sorted(effect_ids(alias)) == good, "each once, and none of an event that is not consumed"
    for each in bad:
        found = get(alias, each)
        assert (found.retry_count, found.interruptions, found.error_class) == (1, 0, error_class)
        assert reason in found.last_error


def create_snapshot(alias: str) -> None:
    """Write a row of which there can be one only."""
    AgentStateSnapshotRecord.objects.using(alias).create(conversation_id="once", user_id=1, snapshot_json="{}")


def execute(alias: str, sql: str) -> None:
    """Send a statement as a handler does that was not written with Django's ORM."""
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
