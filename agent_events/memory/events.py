"""The events of the `memory` service, and the functions that publish them."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Final

import msgspec
from django.utils import timezone

from agent_events.payload_types import (
    ConversationId,
    Identifier,
    Int64,
    Moment,
    Name,
    Reference,
    UserId,
    check_storable,
)
from outbox import event, publish

SOURCE_TEXT_MAX_LENGTH: Final = 1_500
"""In characters; the publisher cuts what is longer."""


@event("memory.extract.requested", service="memory", version="v1", key="conversation_id", validate=check_storable)
class MemoryExtractRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A text that memories are to be extracted from."""

    user_id: UserId
    conversation_id: ConversationId
    assistant_id: Reference | None = None
    run_id: Reference | None = None
    source_message_id: Annotated[int, msgspec.Meta(ge=0, le=Int64)] | None = None
    source_role: Name
    source_text: Annotated[str, msgspec.Meta(min_length=1)]
    occurred_at: Moment
    trace_id: Reference | None = None
    idempotency_key: Identifier


def idempotency_key(*, user_id: int, conversation_id: str, text: str) -> str:
    """Return the key under which the same text of a conversation is extracted once."""
    digest = hashlib.sha256(f"{user_id}|{conversation_id}|{text}".encode()).hexdigest()[:16]
    return f"memory_extract_{user_id}_{digest}"


def publish_memory_extract(
    *,
    user_id: int,
    conversation_id: str,
    source_role: str,
    source_text: str,
    occurred_at: datetime | None = None,
    assistant_id: str | None = None,
    run_id: str | None = None,
    source_message_id: int | None = None,
    trace_id: str | None = None,
) -> str:
    """Publish a text to extract from, cut to ``SOURCE_TEXT_MAX_LENGTH``; return its event id.

    Raises as ``outbox.publish`` does.
    """
    return publish(
        memory_extract(
            user_id=user_id,
            conversation_id=conversation_id,
            source_role=source_role,
            source_text=source_text,
            occurred_at=occurred_at,
            assistant_id=assistant_id,
            run_id=run_id,
            source_message_id=source_message_id,
            trace_id=trace_id,
        )
    )


def memory_extract(
    *,
    user_id: int,
    conversation_id: str,
    source_role: str,
    source_text: str,
    occurred_at: datetime | None = None,
    assistant_id: str | None = None,
    run_id: str | None = None,
    source_message_id: int | None = None,
    trace_id: str | None = None,
) -> MemoryExtractRequested:
    """Return the event for a text, for publishers of many at once. The key is taken from the text as it was given."""
    return MemoryExtractRequested(
        user_id=user_id,
        conversation_id=conversation_id,
        assistant_id=assistant_id,
        run_id=run_id,
        source_message_id=source_message_id,
        source_role=source_role,
        source_text=source_text[:SOURCE_TEXT_MAX_LENGTH],
        occurred_at=occurred_at or timezone.now(),
        trace_id=trace_id,
        idempotency_key=idempotency_key(user_id=user_id, conversation_id=conversation_id, text=source_text),
    )
