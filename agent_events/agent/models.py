"""The tables of the `agent` service."""

from __future__ import annotations

from typing import ClassVar

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


class AgentChat(models.Model):
    """A conversation of a user: how many messages it has, and what it cost."""

    id = models.BigAutoField(primary_key=True)
    conversation_id = KeyField(max_length=128)
    user_id = models.BigIntegerField()
    message_count = models.BigIntegerField(db_default=0)
    tokens_total = models.BigIntegerField(db_default=0)
    last_message_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=UtcNow())
    updated_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "agent_chats"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["conversation_id", "user_id"], name="agent_chat_once"),
        ]
        indexes: ClassVar = [models.Index(fields=["user_id", "last_message_at"], name="agent_chat_recent")]

    def __str__(self) -> str:
        return f"{self.conversation_id} of user {self.user_id}"


class ChatHistory(models.Model):
    """A message of a conversation; ``id`` gives their order. ``event_id`` is the event that brought it."""

    id = models.BigAutoField(primary_key=True)
    event_id = KeyField(max_length=128, unique=True)
    conversation_id = KeyField(max_length=128)
    user_id = models.BigIntegerField()
    role = models.CharField(max_length=64)
    message = models.TextField()
    reasoning_content = models.TextField(null=True)
    reasoning_duration_seconds = models.IntegerField(null=True)
    tokens_consumed = models.BigIntegerField(db_default=0)
    created_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "chat_histories"
        verbose_name_plural = "chat histories"
        indexes: ClassVar = [models.Index(fields=["conversation_id", "id"], name="chat_history_talk")]

    def __str__(self) -> str:
        return f"{self.role} in {self.conversation_id}"


class TokenLedgerEntry(models.Model):
    """Tokens that were added to a chat outside of its messages, once an event."""

    id = models.BigAutoField(primary_key=True)
    event_id = KeyField(max_length=128, unique=True)
    conversation_id = KeyField(max_length=128)
    user_id = models.BigIntegerField()
    tokens_delta = models.BigIntegerField()
    reason = models.CharField(max_length=64)
    triggered_at = models.DateTimeField()
    created_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "agent_token_ledger"
        verbose_name_plural = "token ledger entries"
        indexes: ClassVar = [models.Index(fields=["conversation_id", "id"], name="token_ledger_chat")]

    def __str__(self) -> str:
        return f"{self.tokens_delta} tokens for {self.conversation_id} ({self.reason})"


class AgentTimelineEvent(models.Model):
    """A step of a conversation; ``seq`` gives their order.

    ``requested_seq`` is the seq that the event asked for; it differs where that one was taken.
    """

    id = models.BigAutoField(primary_key=True)
    chat_id = KeyField(max_length=128)
    user_id = models.BigIntegerField()
    seq = models.BigIntegerField()
    requested_seq = models.BigIntegerField(db_default=0)
    kind = models.CharField(max_length=64)
    role = models.CharField(max_length=64, null=True)
    content = models.TextField(null=True)
    payload_json = models.TextField(null=True)
    tokens_consumed = models.BigIntegerField(db_default=0)
    created_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "agent_timeline_events"
        constraints: ClassVar = [
            # The chat first: it alone finds a conversation, the user alone would find too much.
            models.UniqueConstraint(fields=["chat_id", "user_id", "seq"], name="agent_timeline_once"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.seq} of {self.chat_id}"
