"""The tables of the `memory` service."""

from __future__ import annotations

from outbox.models import OutboxMessage, outbox_table


class MemoryOutboxMessage(OutboxMessage):
    """An event that the `memory` service owns."""

    service = "memory"

    class Meta(OutboxMessage.Meta):
        abstract = False
        db_table = outbox_table("memory")
        verbose_name = "memory outbox message"
