"""The events of the `active-scheduler` service, and the functions that publish them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from django.utils import timezone

from agent_events.payload_types import Identifier, Int64, Moment, Reference, UserId, check_storable
from outbox import FieldError, event, publish

TriggerType = Literal["important_urgent_task", "unfinished_feedback"]
Source = Literal["worker_due_job", "api_trigger", "user_feedback"]
"""``api_dry_run`` is refused: a dry run leaves nothing behind."""
TargetType = Literal["task_pool", "schedule_event", "task_item"]


def _validate(payload: ActiveScheduleTriggered) -> None:
    check_storable(payload)
    if payload.target_id == 0 and payload.trigger_type != "unfinished_feedback":
        raise FieldError("target_id", f"it must be above 0 for trigger_type {payload.trigger_type!r}, got 0")
    if payload.is_mock_time and payload.mock_now is None:
        raise FieldError("mock_now", "it is needed where is_mock_time is true")


@event(
    "active_schedule.triggered",
    service="active-scheduler",
    version="1",
    key="user_id",
    aggregate_id="trigger_id",
    validate=_validate,
)
class ActiveScheduleTriggered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something calls for a new proposal to a user. ``mock_now`` replaces the clock where ``is_mock_time``."""

    trigger_id: Identifier
    user_id: UserId
    trigger_type: TriggerType
    source: Source
    target_type: TargetType
    target_id: Annotated[int, msgspec.Meta(ge=0, le=Int64)]
    feedback_id: Reference | None = None
    idempotency_key: Reference | None = None
    dedupe_key: Reference | None = None
    mock_now: Moment | None = None
    is_mock_time: bool
    requested_at: Moment
    payload: dict[str, Any] | None = None
    trace_id: Reference | None = None


def publish_active_schedule_trigger(
    *,
    trigger_id: str,
    user_id: int,
    trigger_type: TriggerType,
    source: Source,
    target_type: TargetType,
    target_id: int = 0,
    feedback_id: str | None = None,
    idempotency_key: str | None = None,
    dedupe_key: str | None = None,
    mock_now: datetime | None = None,
    requested_at: datetime | None = None,
    payload: dict[str, Any] | None = None,
    trace_id: str | None = None,
) -> str:
    """Publish a trigger; return its event id. Raises as ``outbox.publish`` does."""
    return publish(
        ActiveScheduleTriggered(
            trigger_id=trigger_id,
            user_id=user_id,
            trigger_type=trigger_type,
            source=source,
            target_type=target_type,
            target_id=target_id,
            feedback_id=feedback_id,
            idempotency_key=idempotency_key,
            dedupe_key=dedupe_key,
            mock_now=mock_now,
            is_mock_time=mock_now is not None,
            requested_at=requested_at or timezone.now(),
            payload=payload,
            trace_id=trace_id,
        )
    )
