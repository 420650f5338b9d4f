"""Makes what tests of notifications start from: requests, records in any state, users' channels, deliverers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from agent_events.notification.channels import ChannelStore
from agent_events.notification.deliverer import Deliverer, DeliveryOptions
from agent_events.notification.events import FeishuNotificationRequested, dedupe_key
from agent_events.notification.models import NotificationRecord, UserNotificationChannel
from agent_events.notification.preparation import Preparation
from agent_events.notification.records import Claimed, NotificationRecords
from agent_events.notification.sealing import Sealer
from agent_events.notification.sender import WebhookSender
from tests.factories import database_now
from tests.toys import ManualClock
from tests.webhooks import WebhookServer

KEY = "key-of-the-tests"
SEALER = Sealer([KEY])
HOSTS = ("127.0.0.1",)
SENT_AT = datetime(2026, 3, 1, 8, 45, tzinfo=UTC)
REQUESTED_AT = datetime(2026, 3, 1, 8, 44, 12, tzinfo=UTC)
LEASE = timedelta(seconds=60)
TIMEOUT = timedelta(milliseconds=400)


def request(number: int = 1, **changes: Any) -> FeishuNotificationRequested:
    """Return the payload of an event for user ``number``."""
    fields: dict[str, Any] = {
        "user_id": number,
        "trigger_id": f"tr-{number}",
        "preview_id": f"pv-{number}",
        "trigger_type": "important_urgent_task",
        "target_type": "task_pool",
        "target_id": 9,
        "target_url": f"/schedule-adjust/pv-{number}",
        "summary_text": "把报告移到 15:00 🎉",
        "trace_id": "trace-1",
        "requested_at": REQUESTED_AT,
    } | changes
    key = dedupe_key(
        user_id=fields["user_id"], trigger_type=fields["trigger_type"], requested_at=fields["requested_at"]
    )
    return FeishuNotificationRequested(**{"dedupe_key": key} | fields)


def records(alias: str) -> NotificationRecords:
    return NotificationRecords(alias)


def make(alias: str, count: int = 1, **columns: Any) -> list[int]:
    """Create the records of ``count`` users and return their ids, in order; ``columns`` are set as they are."""
    records(alias).create_missing([request(number) for number in range(1, count + 1)])
    ids = list(NotificationRecord.objects.using(alias).order_by("user_id").values_list("pk", flat=True))
    change(alias, ids, **columns)
    return ids


def one(alias: str, server: WebhookServer, *, token: str | None = None) -> int:
    """Create a record of user 1, whose webhook is the server; return its id."""
    channels(alias).save(1, webhook=server.url(), token=token)
    return make(alias)[0]


def change(alias: str, ids: list[int] | int, **columns: Any) -> None:
    """Set columns behind everybody's back."""
    if columns:
        which = [ids] if isinstance(ids, int) else ids
        NotificationRecord.objects.using(alias).filter(pk__in=which).update(**columns)


def get(alias: str, record_id: int) -> NotificationRecord:
    return NotificationRecord.objects.using(alias).get(pk=record_id)


def outcome(alias: str, record_id: int) -> tuple[str, int, str, int | None]:
    """Return what became of a record."""
    record = get(alias, record_id)
    return record.status, record.attempt_count, record.last_error_code, record.http_status


def statuses(alias: str) -> list[str]:
    """Return the statuses of all records, in the order of their ids."""
    return list(NotificationRecord.objects.using(alias).order_by("pk").values_list("status", flat=True))


def make_due(alias: str) -> None:
    """Let every pause and every lease end now."""
    past = database_now(alias) - timedelta(seconds=1)
    NotificationRecord.objects.using(alias).filter(next_retry_at__gt=past).update(next_retry_at=past)


def due_in(alias: str, record_id: int) -> timedelta:
    """Return how long it is until the record is due."""
    at = get(alias, record_id).next_retry_at
    assert at is not None
    return at - database_now(alias)


def claim(alias: str, *, token: str = "t-1", limit: int = 10, lease: timedelta = LEASE) -> list[Claimed]:
    return records(alias).claim(limit=limit, lease=lease, token=token)


def channels(alias: str) -> ChannelStore:
    return ChannelStore(alias, sealer=SEALER, allowed_hosts=HOSTS)


def deliverer(
    alias: str,
    *,
    timeout: timedelta = TIMEOUT,
    clock: Callable[[], float] | None = None,
    sender: WebhookSender | None = None,
    ca_file: str = "",
    **options: Any,
) -> Deliverer:
    """Return a deliverer; ``options`` go to ``DeliveryOptions``."""
    return Deliverer(
        records=records(alias),
        channels=channels(alias),
        sender=sender or WebhookSender(timeout=timeout, ca_file=ca_file),
        preparation=Preparation(SEALER, HOSTS, "https://smartflow.example"),
        options=DeliveryOptions(**({"lease": LEASE, "poll_interval": timedelta(milliseconds=20)} | options)),
        clock=clock or ManualClock(),
        now=lambda: SENT_AT,
    )


def empty(alias: str) -> None:
    """Delete what the tests made."""
    NotificationRecord.objects.using(alias).all().delete()
    UserNotificationChannel.objects.using(alias).all().delete()
