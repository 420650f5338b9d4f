"""The tables of the `active-scheduler` service."""

from __future__ import annotations

from typing import ClassVar, Final

from django.db import models

from outbox.fields import KeyField, ShortTextField, UtcNow
from outbox.models import OutboxMessage, outbox_table


class ActiveSchedulerOutboxMessage(OutboxMessage):
    """An event that the `active-scheduler` service owns."""

    service = "active-scheduler"

    class Meta(OutboxMessage.Meta):
        abstract = False
        db_table = outbox_table("active-scheduler")
        verbose_name = "active-scheduler outbox message"


class TriggerStatus(models.TextChoices):
    """How far a trigger is."""

    PENDING = "pending"
    PROCESSING = "processing"
    FAILED = "failed"
    """It failed and is tried again, until its event is dead."""
    PREVIEW_GENERATED = "preview_generated"
    CLOSED = "closed"
    """There was nothing to propose."""
    SKIPPED = "skipped"
    REJECTED = "rejected"
    """Its event contradicted it."""


FINAL_STATUSES: Final = (
    TriggerStatus.PREVIEW_GENERATED,
    TriggerStatus.CLOSED,
    TriggerStatus.SKIPPED,
    TriggerStatus.REJECTED,
)


class ActiveScheduleTrigger(models.Model):
    """A reason to propose something to a user, and what became of it."""

    id = models.BigAutoField(primary_key=True)
    trigger_id = KeyField(max_length=128, unique=True)
    user_id = models.BigIntegerField()
    trigger_type = models.CharField(max_length=64)
    source = models.CharField(max_length=64)
    target_type = models.CharField(max_length=64)
    target_id = models.BigIntegerField(db_default=0)
    feedback_id = models.CharField(max_length=128, db_default="")
    idempotency_key = KeyField(max_length=128, db_default="")
    dedupe_key = KeyField(max_length=128, db_default="")
    is_mock_time = models.BooleanField(db_default=False)
    mock_now = models.DateTimeField(null=True)
    requested_at = models.DateTimeField(db_default=UtcNow())
    payload_json = models.TextField(null=True)
    trace_id = models.CharField(max_length=128, db_default="")
    status = models.CharField(max_length=32, db_default=TriggerStatus.PENDING.value)
    preview_id = KeyField(max_length=128, db_default="")
    last_error = ShortTextField(null=True)
    created_at = models.DateTimeField(db_default=UtcNow())
    updated_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "active_schedule_triggers"
        indexes: ClassVar = [
            models.Index(fields=["status", "id"], name="schedule_trigger_status"),
            models.Index(fields=["user_id", "idempotency_key"], name="schedule_trigger_request"),
            models.Index(fields=["user_id", "dedupe_key"], name="schedule_trigger_dedupe"),
        ]

    def __str__(self) -> str:
        return f"{self.trigger_type} {self.trigger_id} ({self.status})"


class ActiveSchedulePreview(models.Model):
    """What is proposed to a user. ``trigger_id`` is the trigger that it was made for; repeats of it share the preview.

    ``candidates_json`` is a JSON list, best first.
    """

    id = models.BigAutoField(primary_key=True)
    preview_id = KeyField(max_length=128, unique=True)
    trigger_id = KeyField(max_length=128, unique=True)
    user_id = models.BigIntegerField()
    trigger_type = models.CharField(max_length=64)
    target_type = models.CharField(max_length=64)
    target_id = models.BigIntegerField(db_default=0)
    summary = models.TextField()
    candidates_json = models.TextField()
    created_at = models.DateTimeField(db_default=UtcNow())
    updated_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "active_schedule_previews"
        indexes: ClassVar = [models.Index(fields=["user_id", "id"], name="schedule_preview_user")]

    def __str__(self) -> str:
        return f"{self.preview_id} for user {self.user_id}"
