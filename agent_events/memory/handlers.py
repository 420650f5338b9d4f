"""What the `memory` service does with its events."""

from __future__ import annotations

from agent_events.memory import jobs
from agent_events.memory.events import MemoryExtractRequested
from outbox import Delivery, handles


@handles(MemoryExtractRequested, batch=True)
def enqueue_extract_jobs(deliveries: list[Delivery[MemoryExtractRequested]]) -> None:
    """Insert a job for each text that has none."""
    jobs.enqueue([delivery.payload for delivery in deliveries], using=deliveries[0].database)
