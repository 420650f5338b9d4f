"""The Django app of the `agent` service."""

from __future__ import annotations

from django.apps import AppConfig


class AgentConfig(AppConfig):
    """The `agent` service."""

    name = "agent_events.agent"
    label = "agent"
    verbose_name = "Agent service"
    default_auto_field = "django.db.models.BigAutoField"
