"""The real consumer with a handler of one event, one upsert: ``python -m benchmarks.speed.upserts``, until SIGTERM."""

from __future__ import annotations

import django

django.setup()

from django.core.management import call_command  # noqa: E402

from agent_events.agent.events import AgentStateSnapshot  # noqa: E402
from agent_events.agent.snapshots import Snapshot, save  # noqa: E402
from outbox import Delivery  # noqa: E402
from outbox.declarations.handlers import handlers  # noqa: E402

EVENT_TYPE = "agent.state.snapshot.persist"


def keep_snapshot(delivery: Delivery[AgentStateSnapshot]) -> None:
    """Upsert one snapshot, in one statement."""
    payload = delivery.payload
    snapshot = Snapshot(
        conversation_id=payload.conversation_id,
        user_id=payload.user_id,
        phase=payload.phase,
        snapshot_json=payload.snapshot_json,
        outbox_id=delivery.outbox_id,
    )
    save([snapshot], using=delivery.database)


if __name__ == "__main__":
    handlers.remove(EVENT_TYPE)
    handlers.add(EVENT_TYPE, keep_snapshot)
    call_command("consume", "agent")
