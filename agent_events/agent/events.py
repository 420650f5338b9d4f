"""The events of the `agent` service, and the functions that publish them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from django.db import connections, transaction

from outbox import event, publish
from outbox.bus import publishing_enabled
from outbox.models import service_route

logger = logging.getLogger(__name__)

ConversationId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
UserId = Annotated[int, msgspec.Meta(gt=0, le=2**63 - 1)]


@event("agent.state.snapshot.persist", service="agent", version="v1", key="conversation_id")
class AgentStateSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an agent in one conversation, to be kept as its newest. ``snapshot_json`` may be megabytes."""

    conversation_id: ConversationId
    user_id: UserId
    phase: Annotated[str, msgspec.Meta(max_length=32)]
    snapshot_json: str


def publish_agent_state_snapshot(snapshot: object | None, *, conversation_id: str, user_id: int) -> str | None:
    """Publish the runtime ``snapshot`` of a conversation; return its event id, None when nothing was published.

    A lost snapshot must never fail a chat: with publishing switched off or without a snapshot nothing happens, and an
    error is logged. Where the caller has a transaction open, it goes on unharmed.
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
