"""The events of the `task` service, and the functions that publish them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec
from django.utils import timezone

from agent_events.payload_types import Moment, RowId, UserId, check_storable
from outbox import FieldError, event, publish


def _validate(payload: TaskUrgencyPromoteRequested) -> None:
    check_storable(payload)
    if len(set(payload.task_ids)) != len(payload.task_ids):
        raise FieldError("task_ids", "ids must be unique")


@event("task.urgency.promote.requested", service="task", version="v1", key="user_id", validate=_validate)
class TaskUrgencyPromoteRequested(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks of a user whose time to become urgent may have come."""

    user_id: UserId
    task_ids: Annotated[list[RowId], msgspec.Meta(min_length=1)]
    triggered_at: Moment


def publish_task_urgency_promotion(
    *, user_id: int, task_ids: Sequence[int], triggered_at: datetime | None = None
) -> str:
    """Publish that tasks may have become urgent; return the event id. Repeated ids count once.

    Raises as ``outbox.publish`` does.
    """
    return publish(
        TaskUrgencyPromoteRequested(
            user_id=user_id, task_ids=list(dict.fromkeys(task_ids)), triggered_at=triggered_at or timezone.now()
        )
    )
