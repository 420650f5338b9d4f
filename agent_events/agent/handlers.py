"""What the `agent` service does with its events."""

from __future__ import annotations

from agent_events.agent.events import AgentStateSnapshot
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
