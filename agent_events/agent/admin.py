"""The admin of the `agent` service."""

from __future__ import annotations

from django.contrib import admin

from agent_events.agent.models import (
    AgentChat,
    AgentOutboxMessage,
    AgentStateSnapshotRecord,
    AgentTimelineEvent,
    ChatHistory,
    TokenLedgerEntry,
)
from outbox.admin import OutboxMessageAdmin, RecordAdmin


@admin.register(AgentOutboxMessage)
class AgentOutboxMessageAdmin(OutboxMessageAdmin):
    """The messages of the service."""


@admin.register(AgentStateSnapshotRecord)
class AgentStateSnapshotRecordAdmin(RecordAdmin):
    """The newest state snapshot of each conversation."""

    list_columns = ("conversation_id", "user_id", "phase", "outbox_id", "updated_at")
    filter_columns = ("conversation_id", "user_id")
    payload_columns = ("snapshot_json",)


@admin.register(AgentChat)
class AgentChatAdmin(RecordAdmin):
    """Conversations and their sums."""

    list_columns = ("conversation_id", "user_id", "message_count", "tokens_total", "last_message_at")
    filter_columns = ("conversation_id", "user_id")


@admin.register(ChatHistory)
class ChatHistoryAdmin(RecordAdmin):
    """The messages of conversations."""

    list_columns = ("conversation_id", "user_id", "role", "tokens_consumed", "created_at")
    filter_columns = ("conversation_id", "event_id")
    payload_columns = ("message", "reasoning_content")


@admin.register(TokenLedgerEntry)
class TokenLedgerEntryAdmin(RecordAdmin):
    """Tokens used outside of messages."""

    list_columns = ("conversation_id", "user_id", "tokens_delta", "reason", "triggered_at")
    filter_columns = ("conversation_id", "event_id")


@admin.register(AgentTimelineEvent)
class AgentTimelineEventAdmin(RecordAdmin):
    """The steps of conversations."""

    list_columns = ("chat_id", "user_id", "seq", "requested_seq", "kind", "role", "created_at")
    filter_columns = ("chat_id",)
    payload_columns = ("content", "payload_json")
