"""The events of the `agent` service, and the functions that publish them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from django.db import connections, transaction
from django.utils import timezone

from agent_events.payload_types import ConversationId, Int64, Moment, Name, Tokens, UserId, check_storable
from outbox import event, publish
from outbox.log_text import get_logger
from outbox.models import service_route
from outbox.publishing import publishing_enabled

logger = get_logger(__name__)


@event("agent.state.snapshot.persist", service="agent", version="v1", key="conversation_id", validate=check_storable)
class AgentStateSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an agent in one conversation, to be kept as its newest. ``snapshot_json`` may be megabytes."""

    conversation_id: ConversationId
    user_id: UserId
    phase: Annotated[str, msgspec.Meta(max_length=32)]
    snapshot_json: str


@event("chat.history.persist.requested", service="agent", version="v1", key="conversation_id", validate=check_storable)
class ChatHistoryPersistRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of a conversation, to be appended to its history. Durations are in seconds."""

    user_id: UserId
    conversation_id: ConversationId
    role: Name
    message: str
    reasoning_content: str | None = None
    reasoning_duration_seconds: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None
    tokens_consumed: Tokens


@event(
    "chat.token.usage.adjust.requested",
    service="agent",
    version="v1",
    key="conversation_id",
    aggregate_id=lambda payload: f"{payload.user_id}:{payload.conversation_id}",
    validate=check_storable,
)
class ChatTokenUsageAdjustRequested(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that a conversation used outside of its messages."""

    user_id: UserId
    conversation_id: ConversationId
    tokens_delta: Annotated[int, msgspec.Meta(gt=0, le=Int64)]
    reason: Name
    triggered_at: Moment


@event(
    "agent.timeline.persist.requested", service="agent", version="v1", key="conversation_id", validate=check_storable
)
class AgentTimelinePersistRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A step of a conversation's timeline; ``seq`` orders the steps of one conversation."""

    user_id: UserId
    conversation_id: ConversationId
    seq: Annotated[int, msgspec.Meta(gt=0, le=Int64)]
    kind: Name
    role: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    content: str | None = None
    payload_json: str | None = None
    tokens_consumed: Tokens


def publish_chat_history(
    *,
    user_id: int,
    conversation_id: str,
    role: str,
    message: str,
    tokens_consumed: int = 0,
    reasoning_content: str | None = None,
    reasoning_duration_seconds: int | None = None,
) -> str:
    """Publish a message of a conversation; return its event id. Raises as ``outbox.publish`` does."""
    return publish(
        ChatHistoryPersistRequested(
            user_id=user_id,
            conversation_id=conversation_id,
            role=role,
            message=message,
            reasoning_content=reasoning_content,
            reasoning_duration_seconds=reasoning_duration_seconds,
            tokens_consumed=tokens_consumed,
        )
    )


def publish_token_usage(
    *, user_id: int, conversation_id: str, tokens_delta: int, reason: str, triggered_at: datetime | None = None
) -> str:
    """Publish tokens used; return the event id. ``triggered_at`` defaults to now. Raises as ``outbox.publish`` does."""
    return publish(
        ChatTokenUsageAdjustRequested(
            user_id=user_id,
            conversation_id=conversation_id,
            tokens_delta=tokens_delta,
            reason=reason,
            triggered_at=triggered_at or timezone.now(),
        )
    )


def publish_timeline_event(
    *,
    user_id: int,
    conversation_id: str,
    seq: int,
    kind: str,
    role: str | None = None,
    content: str | None = None,
    payload_json: str | None = None,
    tokens_consumed: int = 0,
) -> str:
    """Publish a step of a timeline; return its event id. Raises as ``outbox.publish`` does."""
    return publish(
        AgentTimelinePersistRequested(
            user_id=user_id,
            conversation_id=conversation_id,
            seq=seq,
            kind=kind,
            role=role,
            content=content,
            payload_json=payload_json,
            tokens_consumed=tokens_consumed,
        )
    )


def publish_agent_state_snapshot(snapshot: object | None, *, conversation_id: str, user_id: int) -> str | None:
    """Publish the runtime ``snapshot`` of a conversation; return its event id, None when nothing was published.

    A lost snapshot must never fail a chat: with publishing switched off or without a snapshot nothing happens, and an
    error is logged. Where the caller has a transaction open, it goes on unharmed, unless its connection was lost.
    """
    if snapshot is None or not publishing_enabled():
        return None
    try:
        plain = msgspec.to_builtins(snapshot, enc_hook=_plain)
        return _publish_unharmed(
            AgentStateSnapshot(
                conversation_id=conversation_id,
                user_id=user_id,
                phase=_phase_of(plain),
                snapshot_json=msgspec.json.encode(plain).decode(),
            )
        )
    except Exception:
        logger.exception("agent state snapshot of conversation %s was not published", conversation_id)
        return None


def _publish_unharmed(snapshot: AgentStateSnapshot) -> str:
    """Publish inside a savepoint where a transaction is open, so that a failed INSERT does not poison it."""
    using = service_route("agent").database
    if not connections[using].in_atomic_block:
        return publish(snapshot)
    with transaction.atomic(using=using):
        return publish(snapshot)


def _phase_of(snapshot: Any) -> str:
    """Return ``runtime_state.common_state.phase``, an empty text where it is absent."""
    at = snapshot
    for name in ("runtime_state", "common_state", "phase"):
        at = at.get(name) if isinstance(at, Mapping) else None
    return at if isinstance(at, str) else ""


def _plain(value: Any) -> Any:
    """Serialise what msgspec does not know by its attributes, as a runtime object has them."""
    if hasattr(value, "__dict__"):
        return {name: attribute for name, attribute in vars(value).items() if not name.startswith("_")}
    raise TypeError(f"a snapshot cannot hold {type(value).__qualname__}")
