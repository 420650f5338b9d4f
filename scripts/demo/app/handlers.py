"""What the demo does with its event."""

from __future__ import annotations

from outbox import Delivery, handles
from scripts.demo.app.events import StepTaken
from scripts.demo.app.models import LedgerEntry


class OnPurposeError(Exception):
    """The event asked to fail."""


@handles(StepTaken)
def enter_into_ledger(delivery: Delivery[StepTaken]) -> None:
    """Write first and fail then: what a failed attempt wrote must not be seen."""
    LedgerEntry.objects.using(delivery.database).create(
        conversation_id=delivery.payload.conversation_id,
        step=delivery.payload.step,
        outbox_id=delivery.outbox_id,
        attempt=delivery.attempt,
    )
    if delivery.attempt <= delivery.payload.failures:
        raise OnPurposeError(f"attempt {delivery.attempt} fails on purpose; {delivery.payload.failures} do")
