"""The tables of the `task` service."""

from __future__ import annotations

from outbox.models import OutboxMessage, outbox_table


class TaskOutboxMessage(OutboxMessage):
    """An event that the `task` service owns."""

    service = "task"

    class Meta(OutboxMessage.Meta):
        abstract = False
        db_table = outbox_table("task")
        verbose_name = "task outbox message"
