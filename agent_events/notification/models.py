"""The tables of the `notification` service."""

from __future__ import annotations

from outbox.models import OutboxMessage, outbox_table


class NotificationOutboxMessage(OutboxMessage):
    """An event that the `notification` service owns."""

    service = "notification"

    class Meta(OutboxMessage.Meta):
        abstract = False
        db_table = outbox_table("notification")
        verbose_name = "notification outbox message"
