"""The admin of the `active-scheduler` service."""

from __future__ import annotations

from django.contrib import admin

from agent_events.active_scheduler.models import (
    ActiveSchedulePreview,
    ActiveSchedulerOutboxMessage,
    ActiveScheduleTrigger,
)
from outbox.admin import OutboxMessageAdmin, RecordAdmin


@admin.register(ActiveSchedulerOutboxMessage)
class ActiveSchedulerOutboxMessageAdmin(OutboxMessageAdmin):
    """The messages of the service."""


@admin.register(ActiveScheduleTrigger)
class ActiveScheduleTriggerAdmin(RecordAdmin):
    """Reasons to propose something, and what became of them."""

    list_columns = ("trigger_id", "user_id", "trigger_type", "source", "status", "last_error", "updated_at")
    filter_columns = ("status", "trigger_id", "user_id")
    payload_columns = ("payload_json",)
    error_columns = ("last_error",)


@admin.register(ActiveSchedulePreview)
class ActiveSchedulePreviewAdmin(RecordAdmin):
    """What is proposed to users."""

    list_columns = ("preview_id", "trigger_id", "user_id", "trigger_type", "created_at")
    filter_columns = ("preview_id", "trigger_id", "user_id")
    payload_columns = ("summary", "candidates_json")
