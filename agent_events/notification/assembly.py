"""Builds the parts of the delivery from settings."""

from __future__ import annotations

import time

from django.utils import timezone

from agent_events.notification.channels import ChannelStore
from agent_events.notification.conf import notification_settings
from agent_events.notification.deliverer import Deliverer, DeliveryOptions
from agent_events.notification.preparation import Preparation
from agent_events.notification.records import NotificationRecords
from agent_events.notification.sealing import configured_sealer
from agent_events.notification.sender import WebhookSender
from outbox.models import service_route


def notification_database() -> str:
    """Return the alias of the database that the service's tables are in."""
    return service_route("notification").database


def build_channels() -> ChannelStore:
    """Return the store of the users' channels."""
    return ChannelStore(
        notification_database(), sealer=configured_sealer(), allowed_hosts=notification_settings().allowed_hosts
    )


def build_records() -> NotificationRecords:
    """Return the store of the records."""
    return NotificationRecords(notification_database())


def build_deliverer(options: DeliveryOptions) -> Deliverer:
    """Return a deliverer.

    :raises ConfigurationError: ``settings.NOTIFICATION`` is wrong.
    """
    configured = notification_settings()
    return Deliverer(
        records=build_records(),
        channels=build_channels(),
        sender=WebhookSender(timeout=configured.timeout, ca_file=configured.ca_file),
        preparation=Preparation(configured_sealer(), configured.allowed_hosts, configured.site_url),
        options=options,
        clock=time.monotonic,
        now=timezone.now,
    )
