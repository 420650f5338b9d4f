"""What is posted to a webhook: a small JSON. No I/O."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from agent_events.notification.records import Claimed

EVENT: Final = "notification.feishu.requested"
VERSION: Final = "1"

TITLE: Final = "SmartFlow has a proposal for your schedule"
ACTION_TEXT: Final = "Look at the proposal"
DEFAULT_SUMMARY: Final = "Open it to see what it would change, and decide."
SUMMARY_MAX_LENGTH: Final = 2_000


class Message(msgspec.Struct, frozen=True):
    """What the user reads."""

    title: str
    summary: str
    action_text: str
    action_url: str


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """The whole request. ``notification_id`` stays the same however often it is sent: a receiver can drop repeats."""

    event: str = EVENT
    version: str = VERSION
    notification_id: int
    user_id: int
    trigger_id: str
    preview_id: str
    trigger_type: str
    target_type: str
    target_id: int
    message: Message
    trace_id: str
    sent_at: datetime


def body_of(record: Claimed, *, site_url: str, sent_at: datetime) -> bytes:
    """Return the request body of ``record``."""
    summary = record.summary_text or record.fallback_text or DEFAULT_SUMMARY
    if len(summary) > SUMMARY_MAX_LENGTH:
        summary = f"{summary[: SUMMARY_MAX_LENGTH - 1]}…"
    return msgspec.json.encode(
        Body(
            notification_id=record.id,
            user_id=record.user_id,
            trigger_id=record.trigger_id,
            preview_id=record.preview_id,
            trigger_type=record.trigger_type,
            target_type=record.target_type,
            target_id=record.target_id,
            message=Message(TITLE, summary, ACTION_TEXT, f"{site_url.rstrip('/')}{record.target_url}"),
            trace_id=record.trace_id,
            sent_at=sent_at,
        )
    )
