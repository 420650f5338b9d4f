"""What the `agent` service does with its events. Each handler works on a list, with the result of one by one."""

from __future__ import annotations

from agent_events.agent import chats, histories, memories, timeline, tokens
from agent_events.agent.events import (
    AgentStateSnapshot,
    AgentTimelinePersistRequested,
    ChatHistoryPersistRequested,
    ChatTokenUsageAdjustRequested,
)
from agent_events.agent.snapshots import Snapshot, save
from outbox import Delivery, handles


@handles(AgentStateSnapshot, batch=True)
def keep_newest_snapshot(deliveries: list[Delivery[AgentStateSnapshot]]) -> None:
    """Upsert the newest snapshot of each conversation in the list."""
    save(
        [
            Snapshot(
                conversation_id=delivery.payload.conversation_id,
                user_id=delivery.payload.user_id,
                phase=delivery.payload.phase,
                snapshot_json=delivery.payload.snapshot_json,
                outbox_id=delivery.outbox_id,
            )
            for delivery in deliveries
        ],
        using=deliveries[0].database,
    )


@handles(ChatHistoryPersistRequested, batch=True)
def append_to_history(deliveries: list[Delivery[ChatHistoryPersistRequested]]) -> None:
    """Append messages, count them in their chats, and offer what users said to the memory service."""
    using = deliveries[0].database
    appended = histories.append(deliveries)
    chats.count_messages((delivery.payload for delivery in appended), using=using)
    memories.publish_extracts(appended, using=using)


@handles(ChatTokenUsageAdjustRequested, batch=True)
def adjust_token_usage(deliveries: list[Delivery[ChatTokenUsageAdjustRequested]]) -> None:
    """Add tokens to their chats, once an event."""
    entered = tokens.enter(deliveries)
    chats.add_tokens((delivery.payload for delivery in entered), using=deliveries[0].database)


@handles(AgentTimelinePersistRequested, batch=True)
def add_to_timeline(deliveries: list[Delivery[AgentTimelinePersistRequested]]) -> None:
    """Add steps to their timelines."""
    timeline.add([delivery.payload for delivery in deliveries], using=deliveries[0].database)
