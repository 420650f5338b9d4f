"""The tables of the `memory` service."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from outbox.fields import KeyField, ShortTextField, UtcNow
from outbox.models import OutboxMessage, outbox_table


class MemoryOutboxMessage(OutboxMessage):
    """An event that the `memory` service owns."""

    service = "memory"

    class Meta(OutboxMessage.Meta):
        abstract = False
        db_table = outbox_table("memory")
        verbose_name = "memory outbox message"


class MemoryJob(models.Model):
    """Work for the memory service: to extract memories from a text. A text is worked on once: ``idempotency_key``."""

    class Status(models.TextChoices):
        PENDING = "pending"

    class JobType(models.TextChoices):
        EXTRACT = "extract"

    id = models.BigAutoField(primary_key=True)
    idempotency_key = KeyField(max_length=128, unique=True)
    job_type = models.CharField(max_length=32, db_default=JobType.EXTRACT.value)
    status = models.CharField(max_length=32, db_default=Status.PENDING.value)
    user_id = models.BigIntegerField()
    conversation_id = KeyField(max_length=128)
    assistant_id = models.CharField(max_length=128, null=True)
    run_id = models.CharField(max_length=128, null=True)
    source_message_id = models.BigIntegerField(null=True)
    source_role = models.CharField(max_length=64)
    source_text = models.TextField()
    occurred_at = models.DateTimeField()
    trace_id = models.CharField(max_length=128, null=True)
    retry_count = models.IntegerField(db_default=0, help_text="Failed attempts so far")
    max_retry = models.IntegerField(db_default=6, help_text="Failed attempts after which the job is given up")
    last_error = ShortTextField(null=True)
    created_at = models.DateTimeField(db_default=UtcNow())
    updated_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "memory_jobs"
        indexes: ClassVar = [
            models.Index(fields=["status", "id"], name="memory_job_open"),
            models.Index(fields=["conversation_id", "id"], name="memory_job_talk"),
        ]

    def __str__(self) -> str:
        return f"{self.job_type} {self.idempotency_key} ({self.status})"
