"""The Django app of the `notification` service."""

from __future__ import annotations

from django.apps import AppConfig


class NotificationConfig(AppConfig):
    """The `notification` service."""

    name = "agent_events.notification"
    label = "notification"
    verbose_name = "Notification service"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from agent_events.notification import checks  # noqa: F401, PLC0415 - registers them
