"""The seam for what is proposed: a function that takes a trigger and returns candidates, best first.

``settings.SMARTFLOW['PREVIEW_BUILDER']`` names a project's own by its dotted path. It runs inside the transaction that
consumes the trigger's event; when it raises, nothing of the attempt is left and the event comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db.models import QuerySet
from django.utils.module_loading import import_string

from agent_events.conf import smartflow_settings


@dataclass(frozen=True, slots=True)
class Trigger:
    """What a builder is told. ``now`` is the database's time, or the mock time that the trigger states."""

    trigger_id: str
    user_id: int
    trigger_type: str
    source: str
    target_type: str
    target_id: int
    now: datetime
    feedback_id: str = ""
    payload: Mapping[str, Any] = field(default_factory=dict)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """Something to propose. ``details`` is for whoever shows the preview; it has to be serialisable as JSON."""

    title: str
    summary: str
    details: dict[str, Any] = {}


PreviewBuilder = Callable[[Trigger], Sequence[Candidate]]


def preview_builder() -> PreviewBuilder:
    """Return the configured builder.

    :raises ImportError: there is none at the configured path.
    """
    builder: PreviewBuilder = import_string(smartflow_settings().preview_builder)
    return builder


def propose_due_task(trigger: Trigger) -> Sequence[Candidate]:
    """Propose to work on a task of the user that is still open and due; other targets have nothing to propose.

    A task is due when its urgency threshold has come, or its deadline where it has no threshold.

    :raises ImproperlyConfigured: the task service has moved out, so a builder of the project's own is needed.
    """
    if trigger.target_type != "task_pool" or trigger.target_id == 0:
        return []
    task = _tasks().filter(pk=trigger.target_id, user_id=trigger.user_id, is_completed=False).first()
    if task is None:
        return []
    due_at = task.urgency_threshold_at or task.deadline_at
    if due_at is None or due_at > trigger.now:
        return []
    title = task.title or f"Task {task.pk}"
    return [
        Candidate(
            title=title,
            summary=f"“{title}” is due and still open. Find a time for it?",
            details={"task_id": task.pk, "priority": task.priority, "due_at": due_at.isoformat()},
        )
    ]


def _tasks() -> QuerySet[Any]:
    # By the app registry and not by an import: a service knows of another its events only, and may be without it.
    try:
        return QuerySet(apps.get_model("task", "Task"))
    except LookupError:
        raise ImproperlyConfigured(
            "The default preview builder reads the tasks of the task service, which is not installed here. "
            "Set SMARTFLOW['PREVIEW_BUILDER'] to a builder of your own."
        ) from None
