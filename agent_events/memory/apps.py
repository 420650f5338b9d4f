"""The Django app of the `memory` service."""

from __future__ import annotations

from django.apps import AppConfig


class MemoryConfig(AppConfig):
    """The `memory` service."""

    name = "agent_events.memory"
    label = "memory"
    verbose_name = "Memory service"
    default_auto_field = "django.db.models.BigAutoField"
