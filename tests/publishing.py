"""What tests of publishing share: an event, the rows it became, and a caller who writes something beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import transaction

from agent_events.agent.events import AgentStateSnapshot
from agent_events.agent.models import AgentOutboxMessage, AgentStateSnapshotRecord


def snapshot(conversation_id: str = "c-1", **fields: Any) -> AgentStateSnapshot:
    values = {"user_id": 7, "phase": "plan", "snapshot_json": '{"a": 1}'} | fields
    return AgentStateSnapshot(conversation_id=conversation_id, **values)


def outbox_rows(alias: str) -> list[AgentOutboxMessage]:
    return list(AgentOutboxMessage.objects.using(alias).order_by("id"))


def remember_business(alias: str) -> None:
    """Stand for what the caller writes beside its event."""
    AgentStateSnapshotRecord.objects.using(alias).create(conversation_id="business", user_id=1, snapshot_json="{}")


@contextmanager
def rolled_back(alias: str) -> Iterator[None]:
    """Run the block in a transaction, or a savepoint of one, that does not commit."""
    with transaction.atomic(using=alias):
        yield
        transaction.set_rollback(True, using=alias)


def business_is_there(alias: str) -> bool:
    return AgentStateSnapshotRecord.objects.using(alias).filter(conversation_id="business").exists()
