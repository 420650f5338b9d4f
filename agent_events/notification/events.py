"""The events of the `notification` service, and the functions that publish them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
from django.utils import timezone

from agent_events.payload_types import Identifier, Int64, Moment, Name, UserId, check_storable
from outbox import FieldError, event, publish

DEDUPE_WINDOW_MINUTES: Final = 30
TARGET_URL_PREFIXES: Final = ("/assistant/", "/schedule-adjust/")


def _validate(payload: FeishuNotificationRequested) -> None:
    check_storable(payload)
    url = payload.target_url
    # A browser reads '//host' and '\\host' as another site, and drops control characters while doing so.
    if "//" in url or "\\" in url or any(ord(character) <= 0x20 for character in url):
        raise FieldError("target_url", f"it must be a path on this site, got {url!r}")
    if ".." in url.partition("?")[0].split("/"):
        raise FieldError("target_url", f"it must not climb out of its folder, got {url!r}")
    if not url.startswith(TARGET_URL_PREFIXES):
        raise FieldError("target_url", f"it must start with {' or '.join(TARGET_URL_PREFIXES)}, got {url!r}")


@event(
    "notification.feishu.requested",
    service="notification",
    version="1",
    key="user_id",
    aggregate_id="preview_id",
    validate=_validate,
)
class FeishuNotificationRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A user is to be told of a proposal. ``target_url`` is a path on the site itself."""

    notification_id: Annotated[int, msgspec.Meta(gt=0, le=Int64)] | None = None
    user_id: UserId
    trigger_id: Identifier
    preview_id: Identifier
    trigger_type: Name
    target_type: Name
    target_id: Annotated[int, msgspec.Meta(ge=0, le=Int64)]
    dedupe_key: Identifier
    target_url: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    summary_text: str | None = None
    fallback_text: str | None = None
    trace_id: str | None = None
    requested_at: Moment


def dedupe_key(*, user_id: int, trigger_type: str, requested_at: datetime) -> str:
    """Return the key under which a user is told once in a window of ``DEDUPE_WINDOW_MINUTES``."""
    moment = requested_at.astimezone(UTC)
    start = moment.replace(minute=moment.minute - moment.minute % DEDUPE_WINDOW_MINUTES, second=0, microsecond=0)
    return f"{user_id}:{trigger_type}:{start:%Y-%m-%dT%H:%M:%SZ}"


def publish_feishu_notification(
    *,
    user_id: int,
    trigger_id: str,
    preview_id: str,
    trigger_type: str,
    target_type: str,
    target_id: int,
    target_url: str,
    notification_id: int | None = None,
    summary_text: str | None = None,
    fallback_text: str | None = None,
    trace_id: str | None = None,
    requested_at: datetime | None = None,
) -> str:
    """Publish that a user is to be told; return the event id. Raises as ``outbox.publish`` does."""
    moment = requested_at or timezone.now()
    return publish(
        FeishuNotificationRequested(
            notification_id=notification_id,
            user_id=user_id,
            trigger_id=trigger_id,
            preview_id=preview_id,
            trigger_type=trigger_type,
            target_type=target_type,
            target_id=target_id,
            dedupe_key=dedupe_key(user_id=user_id, trigger_type=trigger_type, requested_at=moment),
            target_url=target_url,
            summary_text=summary_text,
            fallback_text=fallback_text,
            trace_id=trace_id,
            requested_at=moment,
        )
    )
