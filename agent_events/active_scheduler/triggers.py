"""The rows of triggers: found or made, locked, and moved from status to status."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec
from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from agent_events.active_scheduler.events import ActiveScheduleTriggered
from agent_events.active_scheduler.models import FINAL_STATUSES, ActiveScheduleTrigger, TriggerStatus
from outbox.fields import UtcNow, storable

LAST_ERROR_MAX_LENGTH: Final = 2000


def lock(event: ActiveScheduleTriggered, *, using: str) -> tuple[ActiveScheduleTrigger, datetime]:
    """Return the locked row of the event's trigger and the database's time; the row is made when it is missing."""
    make(event, using=using)
    row = _rows(event.trigger_id, using).select_for_update().annotate(now=UtcNow()).get()
    return row, row.now


def make(event: ActiveScheduleTriggered, *, using: str) -> None:
    """Make the row of the event's trigger where there is none; the caller's transaction goes on unharmed."""
    if _rows(event.trigger_id, using).exists():
        return
    row = ActiveScheduleTrigger(
        trigger_id=event.trigger_id,
        user_id=event.user_id,
        trigger_type=event.trigger_type,
        source=event.source,
        target_type=event.target_type,
        target_id=event.target_id,
        feedback_id=event.feedback_id or "",
        idempotency_key=event.idempotency_key or "",
        dedupe_key=event.dedupe_key or "",
        is_mock_time=event.is_mock_time,
        mock_now=event.mock_now,
        requested_at=event.requested_at,
        payload_json=None if event.payload is None else msgspec.json.encode(event.payload).decode(),
        trace_id=event.trace_id or "",
    )
    try:
        with transaction.atomic(using=using):
            row.save(using=using, force_insert=True)
    except IntegrityError:
        # Somebody else made it meanwhile.
        if not _rows(event.trigger_id, using).exists():
            raise


def contradiction(row: ActiveScheduleTrigger, event: ActiveScheduleTriggered) -> str:
    """Say in what an event contradicts the row of its trigger; an empty text when it does not."""
    said = {name: (getattr(event, name), getattr(row, name)) for name in _FIXED}
    return "; ".join(
        f"{name} is {of_event!r} in the event and {of_row!r} in the trigger"
        for name, (of_event, of_row) in said.items()
        if of_event != of_row
    )


_FIXED: Final = ("user_id", "trigger_type", "target_type", "target_id")


def move(trigger_id: str, status: TriggerStatus, *, using: str, error: str = "", preview_id: str = "") -> None:
    """Give a locked row another status, in the caller's transaction."""
    _rows(trigger_id, using).update(
        status=status, last_error=_shortened(error) or None, preview_id=preview_id, updated_at=UtcNow()
    )


def note_failure(trigger_id: str, reason: str, *, using: str) -> bool:
    """Note on a trigger why an attempt failed; one that has ended meanwhile is left alone. Say whether it was noted."""
    unfinished = _rows(trigger_id, using).exclude(status__in=FINAL_STATUSES)
    noted = unfinished.update(status=TriggerStatus.FAILED, last_error=_shortened(reason), updated_at=UtcNow())
    return noted > 0


def _rows(trigger_id: str, using: str) -> QuerySet[ActiveScheduleTrigger]:
    return ActiveScheduleTrigger.objects.using(using).filter(trigger_id=trigger_id)


def _shortened(text: str) -> str:
    return storable(text, LAST_ERROR_MAX_LENGTH)
