"""The tables of the `probe` service."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from outbox.fields import KeyField, UtcNow
from outbox.models import OutboxMessage, outbox_table


class ProbeOutboxMessage(OutboxMessage):
    """An event that the `probe` service owns."""

    service = "probe"

    class Meta(OutboxMessage.Meta):
        abstract = False
        db_table = outbox_table("probe")


class BusinessRow(models.Model):
    """What a publisher writes in the transaction of its event: the two are both there, or neither is."""

    event_id = models.CharField(max_length=64)
    message_key = KeyField(max_length=128)

    class Meta:
        db_table = "probe_business_rows"

    def __str__(self) -> str:
        return self.event_id


class Effect(models.Model):
    """What a handler did; the ids give the order. Nothing here is unique, so that an effect made twice shows."""

    id = models.BigAutoField(primary_key=True)
    outbox_id = models.BigIntegerField()
    event_id = models.CharField(max_length=64)
    message_key = KeyField(max_length=128)
    n = models.IntegerField()
    attempt = models.IntegerField()
    worker_pid = models.IntegerField()
    made_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "probe_effects"
        indexes: ClassVar = [models.Index(fields=["outbox_id"], name="probe_effect_of")]

    def __str__(self) -> str:
        return f"{self.message_key} #{self.outbox_id}"
