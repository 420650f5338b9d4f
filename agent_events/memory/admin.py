"""The admin of the `memory` service."""

from __future__ import annotations

from django.contrib import admin

from agent_events.memory.models import MemoryJob, MemoryOutboxMessage
from outbox.admin import OutboxMessageAdmin, RecordAdmin


@admin.register(MemoryOutboxMessage)
class MemoryOutboxMessageAdmin(OutboxMessageAdmin):
    """The messages of the service."""


@admin.register(MemoryJob)
class MemoryJobAdmin(RecordAdmin):
    """What memories are to be extracted from."""

    list_columns = ("job_type", "status", "conversation_id", "user_id", "retry_count", "created_at")
    filter_columns = ("status", "conversation_id", "idempotency_key")
    payload_columns = ("source_text",)
    error_columns = ("last_error",)
