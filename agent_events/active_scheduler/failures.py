"""A failed attempt is noted on its trigger, where users of the service look.

The attempt's own transaction is rolled back, so the note has one of its own: written when the consumer tells, after
the rollback, that the event comes again or is dead. A success in between wins: a trigger that has ended stays so.
"""

from __future__ import annotations

from typing import Final

from django.db import transaction

from agent_events.active_scheduler import triggers
from agent_events.active_scheduler.events import ActiveScheduleTriggered
from outbox import signals
from outbox.exceptions import EnvelopeError
from outbox.log_text import get_logger
from outbox.models import service_route
from outbox.publishing import stored_event

logger = get_logger(__name__)

_EVENT_TYPE: Final = "active_schedule.triggered"


def connect() -> None:
    """Listen to the consumer; called when Django starts."""
    signals.retried.connect(note_retry, dispatch_uid=f"{__name__}.retried")
    signals.buried.connect(note_burial, dispatch_uid=f"{__name__}.buried")


def note_retry(sender: str, *, outbox_id: int, event_type: str, error: Exception, **_: object) -> None:
    """Note an attempt that failed and comes again."""
    if event_type == _EVENT_TYPE:
        _note(sender, outbox_id, f"{type(error).__name__}: {error}")


def note_burial(sender: str, *, outbox_id: int, event_type: str, reason: str, **_: object) -> None:
    """Note the last attempt, or what made the event unreadable."""
    if event_type == _EVENT_TYPE:
        _note(sender, outbox_id, reason)


def _note(service: str, outbox_id: int, reason: str) -> None:
    try:
        stored = stored_event(service, outbox_id=outbox_id, event_type=_EVENT_TYPE)
    except EnvelopeError:
        logger.info("row %s of %s does not say which trigger it was", outbox_id, service)
        return
    event = stored.payload if isinstance(stored.payload, ActiveScheduleTriggered) else None
    using = service_route(service).database
    with transaction.atomic(using=using):
        if event is not None:
            # A row that the attempt made was rolled back with it.
            triggers.make(event, using=using)
        triggers.note_failure(event.trigger_id if event else stored.aggregate_id, reason, using=using)
