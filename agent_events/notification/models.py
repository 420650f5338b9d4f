"""The tables of the `notification` service."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from agent_events.notification.lifecycle import Status
from outbox.fields import KeyField, ShortTextField, UtcNow
from outbox.models import OutboxMessage, outbox_table


class NotificationOutboxMessage(OutboxMessage):
    """An event that the `notification` service owns."""

    service = "notification"

    class Meta(OutboxMessage.Meta):
        abstract = False
        db_table = outbox_table("notification")
        verbose_name = "notification outbox message"


class NotificationRecord(models.Model):
    """One thing that a user is told over one channel. Written by ``records`` only.

    The outbox brings it here exactly once; how it gets to the user is a state machine of its own (``lifecycle``).
    """

    id = models.BigAutoField(primary_key=True)
    channel = models.CharField(max_length=32)
    dedupe_key = KeyField(max_length=128)
    user_id = models.BigIntegerField()
    trigger_id = models.CharField(max_length=128)
    preview_id = models.CharField(max_length=128)
    trigger_type = models.CharField(max_length=64)
    target_type = models.CharField(max_length=64)
    target_id = models.BigIntegerField()
    target_url = models.CharField(max_length=512)
    summary_text = models.TextField(null=True)
    fallback_text = models.TextField(null=True)
    trace_id = models.CharField(max_length=128, db_default="")
    requested_at = models.DateTimeField()
    status = models.CharField(max_length=32, db_default=Status.PENDING.value)
    attempt_count = models.IntegerField(db_default=0, help_text="Attempts begun so far")
    next_retry_at = models.DateTimeField(
        null=True,
        db_default=UtcNow(),
        help_text="When it is due: to be sent (pending, failed), to be taken up again (sending); empty at the end",
    )
    lease_token = models.CharField(max_length=32, db_default="", help_text="Who holds it while it is sending")
    last_error_code = models.CharField(max_length=64, db_default="")
    last_error = ShortTextField(null=True)
    http_status = models.SmallIntegerField(null=True)
    request_json = models.TextField(null=True, help_text="The last request, its secrets masked")
    response_text = ShortTextField(null=True, help_text="The start of the last answer, secrets masked")
    sent_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=UtcNow())
    updated_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "notification_records"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["channel", "dedupe_key"], name="notification_record_once"),
        ]
        indexes: ClassVar = [
            # What is due, in order. A finished record has no next_retry_at and so does not lie in the searched range.
            models.Index(fields=["next_retry_at", "id"], name="notification_record_due"),
            models.Index(fields=["user_id", "id"], name="notification_record_user"),
            models.Index(fields=["status", "id"], name="notification_record_status"),
        ]

    def __str__(self) -> str:
        return f"notification #{self.pk} of user {self.user_id} ({self.status})"


class UserNotificationChannel(models.Model):
    """Where a user wants to be told. Written by ``channels`` only; webhook and token are sealed (``sealing``)."""

    id = models.BigAutoField(primary_key=True)
    user_id = models.BigIntegerField()
    channel = models.CharField(max_length=32)
    enabled = models.BooleanField(db_default=True)
    sealed_webhook = models.TextField(null=True)
    sealed_token = models.TextField(null=True)
    webhook_hint = models.CharField(max_length=255, db_default="", help_text="The webhook, masked")
    token_hint = models.CharField(max_length=16, db_default="", help_text="The bearer token, masked")
    created_at = models.DateTimeField(db_default=UtcNow())
    updated_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "user_notification_channels"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["user_id", "channel"], name="notification_channel_once"),
        ]

    def __str__(self) -> str:
        return f"{self.channel} of user {self.user_id}"
