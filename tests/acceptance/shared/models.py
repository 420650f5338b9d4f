"""The tables of the `shared` service."""

from __future__ import annotations

from django.db import models

from outbox.fields import KeyField
from outbox.models import OutboxMessage, outbox_table


class SharedOutboxMessage(OutboxMessage):
    """An event that both programs write."""

    service = "shared"
    event_type = KeyField(max_length=64, db_column="biz_type")
    whole_payload_bytes = 900_000

    class Meta(OutboxMessage.Meta):
        abstract = False
        db_table = outbox_table("shared")


class SharedEffect(models.Model):
    """What a handler of either program did; the ids give the order, and nothing is unique."""

    id = models.BigAutoField(primary_key=True)
    outbox_id = models.BigIntegerField()
    message_key = KeyField(max_length=128)
    n = models.IntegerField()
    filler_length = models.IntegerField()
    made_by = models.CharField(max_length=8)

    class Meta:
        db_table = "shared_effects"

    def __str__(self) -> str:
        return f"{self.message_key} #{self.outbox_id}"
