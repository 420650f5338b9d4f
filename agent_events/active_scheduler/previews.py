"""Previews: what is proposed to a user, once for a trigger and all that repeat it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec

from agent_events.active_scheduler.candidates import Candidate
from agent_events.active_scheduler.events import ActiveScheduleTriggered
from agent_events.active_scheduler.models import ActiveSchedulePreview, ActiveScheduleTrigger, TriggerStatus
from outbox.fields import storable


def existing(event: ActiveScheduleTriggered, *, using: str) -> ActiveSchedulePreview | None:
    """Return the preview of this trigger, or of an earlier one that it repeats.

    A repeat has the idempotency key or the dedupe key of an earlier trigger of the same user, type and target.
    """
    previews = ActiveSchedulePreview.objects.using(using)
    found = previews.filter(trigger_id=event.trigger_id).first()
    for name in ("idempotency_key", "dedupe_key"):
        key = getattr(event, name)
        if found is None and key:
            repeated = ActiveScheduleTrigger.objects.using(using).filter(
                **{name: key},
                user_id=event.user_id,
                trigger_type=event.trigger_type,
                target_type=event.target_type,
                target_id=event.target_id,
                status=TriggerStatus.PREVIEW_GENERATED,
            )
            preview_id = repeated.order_by("-pk").values_list("preview_id", flat=True).first()
            found = previews.filter(preview_id=preview_id).first() if preview_id else None
    return found


def save(event: ActiveScheduleTriggered, candidates: Sequence[Candidate], *, using: str) -> ActiveSchedulePreview:
    """Save what is proposed, the best candidate first; its summary is that of the preview."""
    return ActiveSchedulePreview.objects.using(using).create(
        preview_id=uuid.uuid4().hex,
        trigger_id=event.trigger_id,
        user_id=event.user_id,
        trigger_type=event.trigger_type,
        target_type=event.target_type,
        target_id=event.target_id,
        summary=storable(candidates[0].summary),
        candidates_json=msgspec.json.encode(list(candidates)).decode(),
    )
