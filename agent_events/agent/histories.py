"""The history of chats: messages in the order of their events, each once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent_events.agent.events import ChatHistoryPersistRequested
from agent_events.agent.models import ChatHistory
from agent_events.agent.repeats import without_repeats
from outbox import Delivery
from outbox.bulk import BulkInsert

_INSERT: Final = BulkInsert(
    table=ChatHistory._meta.db_table,
    columns=(
        "event_id",
        "conversation_id",
        "user_id",
        "role",
        "message",
        "reasoning_content",
        "reasoning_duration_seconds",
        "tokens_consumed",
    ),
)


def append(deliveries: Sequence[Delivery[ChatHistoryPersistRequested]]) -> list[Delivery[ChatHistoryPersistRequested]]:
    """Append messages in the caller's transaction; return those that were not there, in their order."""
    using = deliveries[0].database
    new = without_repeats(deliveries, ChatHistory.objects.using(using))
    _INSERT.run([_row(delivery) for delivery in new], using=using)
    return new


def _row(delivery: Delivery[ChatHistoryPersistRequested]) -> tuple[object, ...]:
    message = delivery.payload
    return (
        delivery.event_id,
        message.conversation_id,
        message.user_id,
        message.role,
        message.message,
        message.reasoning_content,
        message.reasoning_duration_seconds,
        message.tokens_consumed,
    )
