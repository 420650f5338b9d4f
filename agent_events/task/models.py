"""The tables of the `task` service."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from outbox.fields import UtcNow
from outbox.models import OutboxMessage, outbox_table


class TaskOutboxMessage(OutboxMessage):
    """An event that the `task` service owns."""

    service = "task"

    class Meta(OutboxMessage.Meta):
        abstract = False
        db_table = outbox_table("task")
        verbose_name = "task outbox message"


class Task(models.Model):
    """Something that a user has to do.

    ``priority`` is a number of ``Priority``, or a higher one for what is not important. ``urgency_threshold_at`` is
    when an important task becomes urgent.
    """

    class Priority(models.IntegerChoices):
        IMPORTANT_URGENT = 1
        IMPORTANT = 2

    id = models.BigAutoField(primary_key=True)
    user_id = models.BigIntegerField()
    title = models.CharField(max_length=255, db_default="")
    priority = models.SmallIntegerField(db_default=Priority.IMPORTANT.value)
    is_completed = models.BooleanField(db_default=False)
    deadline_at = models.DateTimeField(null=True)
    urgency_threshold_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=UtcNow())
    updated_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "tasks"
        indexes: ClassVar = [
            models.Index(fields=["user_id", "is_completed", "urgency_threshold_at"], name="task_open"),
        ]

    def __str__(self) -> str:
        return f"task {self.pk} of user {self.user_id}"
