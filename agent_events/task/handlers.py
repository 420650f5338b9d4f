"""What the `task` service does with its events."""

from __future__ import annotations

from agent_events.task import urgency
from agent_events.task.events import TaskUrgencyPromoteRequested
from outbox import Delivery, handles


@handles(TaskUrgencyPromoteRequested)
def promote_urgency(delivery: Delivery[TaskUrgencyPromoteRequested]) -> None:
    """Make those of the named tasks urgent whose time has come."""
    urgency.promote(delivery.payload.task_ids, user_id=delivery.payload.user_id, using=delivery.database)
