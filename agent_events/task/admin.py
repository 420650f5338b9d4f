"""The admin of the `task` service."""

from __future__ import annotations

from django.contrib import admin

from agent_events.task.models import Task, TaskOutboxMessage
from outbox.admin import OutboxMessageAdmin, RecordAdmin


@admin.register(TaskOutboxMessage)
class TaskOutboxMessageAdmin(OutboxMessageAdmin):
    """The messages of the service."""


@admin.register(Task)
class TaskAdmin(RecordAdmin):
    """What users have to do."""

    list_columns = ("user_id", "priority", "is_completed", "urgency_threshold_at", "deadline_at", "updated_at")
    filter_columns = ("user_id",)
    payload_columns = ("title",)
