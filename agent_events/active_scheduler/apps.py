"""The Django app of the `active-scheduler` service."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register


class ActiveSchedulerConfig(AppConfig):
    """The `active-scheduler` service."""

    name = "agent_events.active_scheduler"
    label = "active_scheduler"
    verbose_name = "Active scheduler service"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from agent_events.active_scheduler import checks, failures  # noqa: PLC0415 - they need the models

        register(checks.check_preview_builder)
        failures.connect()
