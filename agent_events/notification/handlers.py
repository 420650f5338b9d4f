"""What the `notification` service does with its events."""

from __future__ import annotations

from agent_events.notification.events import FeishuNotificationRequested
from agent_events.notification.records import NotificationRecords
from outbox import Delivery, handles


@handles(FeishuNotificationRequested, batch=True)
def record_notifications(deliveries: list[Delivery[FeishuNotificationRequested]]) -> None:
    """Find or create the record of each request; delivering it is the matter of ``manage.py deliver_notifications``."""
    NotificationRecords(deliveries[0].database).create_missing([delivery.payload for delivery in deliveries])
