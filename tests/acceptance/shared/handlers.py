"""What the project does with events of the `shared` service."""

from __future__ import annotations

from outbox import Delivery, handles
from tests.acceptance.shared.events import SharedStep
from tests.acceptance.shared.models import SharedEffect


@handles(SharedStep)
def take_step(delivery: Delivery[SharedStep]) -> None:
    """Write down the effect."""
    SharedEffect.objects.using(delivery.database).create(
        outbox_id=delivery.outbox_id,
        message_key=delivery.message_key,
        n=delivery.payload.n,
        filler_length=len(delivery.payload.filler),
        made_by="django",
    )
