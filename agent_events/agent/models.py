"""The tables of the `agent` service."""

from __future__ import annotations

from django.db import models

from outbox.fields import KeyField, UtcNow
from outbox.models import OutboxMessage, outbox_table


class AgentOutboxMessage(OutboxMessage):
    """An event that the `agent` service owns."""

    service = "agent"

    class Meta(OutboxMessage.Meta):
        abstract = False
        db_table = outbox_table("agent")
        verbose_name = "agent outbox message"


class AgentStateSnapshotRecord(models.Model):
    """The newest state snapshot of a conversation.

    ``outbox_id`` is the id of the event that it came from: an older event never overwrites a newer one.
    """

    id = models.BigAutoField(primary_key=True)
    conversation_id = KeyField(max_length=128, unique=True)
    user_id = models.BigIntegerField(db_index=True)
    phase = models.CharField(max_length=32, db_default="")
    snapshot_json = models.TextField()
    outbox_id = models.BigIntegerField(db_default=0)
    created_at = models.DateTimeField(db_default=UtcNow())
    updated_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "agent_state_snapshot_records"

    def __str__(self) -> str:
        return f"{self.conversation_id} ({self.phase})"
