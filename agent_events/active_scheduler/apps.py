"""The Django app of the `active-scheduler` service."""

from __future__ import annotations

from django.apps import AppConfig


class ActiveSchedulerConfig(AppConfig):
    """The `active-scheduler` service."""

    name = "agent_events.active_scheduler"
    label = "active_scheduler"
    verbose_name = "Active scheduler service"
    default_auto_field = "django.db.models.BigAutoField"
