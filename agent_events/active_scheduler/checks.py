"""System checks of the `active-scheduler` service."""

from __future__ import annotations

from typing import Any, Final

from django.apps import apps
from django.core.checks import CheckMessage, Error

from agent_events.active_scheduler.candidates import preview_builder, propose_due_task

_HINT: Final = (
    "SMARTFLOW['PREVIEW_BUILDER'] is the dotted path of a function that takes an "
    "agent_events.active_scheduler.candidates.Trigger and returns a list of Candidates."
)


def check_preview_builder(**_: Any) -> list[CheckMessage]:
    """Check that the configured preview builder is there and can work."""
    try:
        builder = preview_builder()
    except Exception as error:  # noqa: BLE001 - a module of the project may raise anything; a check never does
        said = f"{type(error).__name__}: {error}"
        return [Error(f"The preview builder cannot be loaded: {said}", hint=_HINT, id="active_scheduler.E001")]
    if not callable(builder):
        return [Error(f"The preview builder is no function: {builder!r}", hint=_HINT, id="active_scheduler.E001")]
    if builder is propose_due_task and "task" not in apps.app_configs:
        return [
            Error(
                "The default preview builder reads the tasks of the task service, which is not installed here.",
                hint=_HINT,
                id="active_scheduler.E002",
            )
        ]
    return []
