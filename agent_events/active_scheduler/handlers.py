"""What the `active-scheduler` service does with its events."""

from __future__ import annotations

from datetime import datetime

from agent_events.active_scheduler import previews, triggers
from agent_events.active_scheduler.candidates import Trigger, preview_builder
from agent_events.active_scheduler.events import ActiveScheduleTriggered
from agent_events.active_scheduler.models import FINAL_STATUSES, ActiveSchedulePreview, TriggerStatus
from agent_events.notification.events import publish_feishu_notification
from outbox import Delivery, handles

FALLBACK_TEXT = "There is a proposal for your schedule."


@handles(ActiveScheduleTriggered)
def propose(delivery: Delivery[ActiveScheduleTriggered]) -> None:
    """Make a preview of what to propose and have the user told of it; a trigger that has ended stays as it is.

    When this raises, ``failures`` notes it on the trigger after the rollback.
    """
    event, using = delivery.payload, delivery.database
    row, database_now = triggers.lock(event, using=using)
    if row.status in FINAL_STATUSES:
        return
    contradiction = triggers.contradiction(row, event)
    if contradiction:
        triggers.move(event.trigger_id, TriggerStatus.REJECTED, using=using, error=contradiction)
        return
    triggers.move(event.trigger_id, TriggerStatus.PROCESSING, using=using)
    now = event.mock_now if event.is_mock_time and event.mock_now is not None else database_now
    preview = previews.existing(event, using=using) or _build(event, now, using=using)
    if preview is None:
        triggers.move(event.trigger_id, TriggerStatus.CLOSED, using=using)
        return
    triggers.move(event.trigger_id, TriggerStatus.PREVIEW_GENERATED, using=using, preview_id=preview.preview_id)
    _notify(event, preview, now)


def _build(event: ActiveScheduleTriggered, now: datetime, *, using: str) -> ActiveSchedulePreview | None:
    candidates = preview_builder()(
        Trigger(
            trigger_id=event.trigger_id,
            user_id=event.user_id,
            trigger_type=event.trigger_type,
            source=event.source,
            target_type=event.target_type,
            target_id=event.target_id,
            now=now,
            feedback_id=event.feedback_id or "",
            payload=event.payload or {},
        )
    )
    return previews.save(event, candidates, using=using) if candidates else None


def _notify(event: ActiveScheduleTriggered, preview: ActiveSchedulePreview, now: datetime) -> None:
    publish_feishu_notification(
        user_id=event.user_id,
        trigger_id=event.trigger_id,
        preview_id=preview.preview_id,
        trigger_type=event.trigger_type,
        target_type=event.target_type,
        target_id=event.target_id,
        target_url=f"/schedule-adjust/{preview.preview_id}",
        summary_text=preview.summary,
        fallback_text=FALLBACK_TEXT,
        trace_id=event.trace_id,
        requested_at=now,
    )
