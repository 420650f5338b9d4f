"""``settings.SMARTFLOW`` as one frozen object, validated, with defaults: what the services leave to the project."""

from __future__ import annotations

import msgspec
from django.conf import settings

from outbox.exceptions import ConfigurationError


class SmartflowSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename=str.upper):
    """All of ``settings.SMARTFLOW``."""

    memory_enabled: bool = True
    """Whether what users say in chats is offered to the memory service."""
    preview_builder: str = "agent_events.active_scheduler.candidates.propose_due_task"
    """Dotted path of the function that says what to propose for a trigger of the active scheduler."""


def smartflow_settings() -> SmartflowSettings:
    """Return the project's settings.

    :raises ConfigurationError: names the key and the value's fault.
    """
    try:
        return msgspec.convert(getattr(settings, "SMARTFLOW", {}), type=SmartflowSettings)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"settings.SMARTFLOW: {error}") from error
