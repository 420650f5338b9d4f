"""The tables of the `active-scheduler` service."""

from __future__ import annotations

from outbox.models import OutboxMessage, outbox_table


class ActiveSchedulerOutboxMessage(OutboxMessage):
    """An event that the `active-scheduler` service owns."""

    service = "active-scheduler"

    class Meta(OutboxMessage.Meta):
        abstract = False
        db_table = outbox_table("active-scheduler")
        verbose_name = "active-scheduler outbox message"
