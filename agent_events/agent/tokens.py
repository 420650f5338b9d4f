"""The ledger of tokens that chats used outside of their messages: one entry an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent_events.agent.events import ChatTokenUsageAdjustRequested
from agent_events.agent.models import TokenLedgerEntry
from agent_events.agent.repeats import without_repeats
from outbox import Delivery
from outbox.bulk import BulkInsert

_INSERT: Final = BulkInsert(
    table=TokenLedgerEntry._meta.db_table,
    columns=("event_id", "conversation_id", "user_id", "tokens_delta", "reason", "triggered_at"),
)


def enter(
    deliveries: Sequence[Delivery[ChatTokenUsageAdjustRequested]],
) -> list[Delivery[ChatTokenUsageAdjustRequested]]:
    """Enter uses in the caller's transaction; return those that were not there, in their order."""
    using = deliveries[0].database
    new = without_repeats(deliveries, TokenLedgerEntry.objects.using(using))
    _INSERT.run([_row(delivery) for delivery in new], using=using)
    return new


def _row(delivery: Delivery[ChatTokenUsageAdjustRequested]) -> tuple[object, ...]:
    usage = delivery.payload
    return (
        delivery.event_id,
        usage.conversation_id,
        usage.user_id,
        usage.tokens_delta,
        usage.reason,
        usage.triggered_at,
    )
