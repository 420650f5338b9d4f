"""The ledger that shows one effect each: it has no unique key that would hide a second one."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class LedgerEntry(models.Model):
    """A step that took effect. ``id`` says in which order."""

    conversation_id = models.CharField(max_length=128)
    step = models.IntegerField()
    outbox_id = models.BigIntegerField()
    attempt = models.IntegerField()

    objects: ClassVar[models.Manager[LedgerEntry]] = models.Manager()

    class Meta:
        db_table = "demo_ledger"
        verbose_name_plural = "ledger entries"

    def __str__(self) -> str:
        return f"{self.conversation_id} step {self.step}"
