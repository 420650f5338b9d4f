"""The Django app: ``INSTALLED_APPS`` names it ``outbox``."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules

__all__ = ["OutboxConfig"]


class OutboxConfig(AppConfig):
    """Finds the contracts and handlers of all installed apps."""

    name = "outbox"
    label = "outbox"
    verbose_name = "Outbox"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from outbox import checks  # noqa: F401, PLC0415 - registers the system checks

        # In this order over all apps: a handler may import the events of another service.
        autodiscover_modules("events")
        autodiscover_modules("handlers")
