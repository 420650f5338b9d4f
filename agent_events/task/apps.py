"""The Django app of the `task` service."""

from __future__ import annotations

from django.apps import AppConfig


class TaskConfig(AppConfig):
    """The `task` service."""

    name = "agent_events.task"
    label = "task"
    verbose_name = "Task service"
    default_auto_field = "django.db.models.BigAutoField"
