"""What a user says is offered to the memory service, in the transaction that keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final

from agent_events.agent.events import ChatHistoryPersistRequested
from agent_events.agent.models import ChatHistory
from agent_events.conf import smartflow_settings
from agent_events.memory.events import memory_extract
from outbox import Delivery, publish_many
from outbox.publishing import traceparent

_USER: Final = "user"


def publish_extracts(deliveries: Sequence[Delivery[ChatHistoryPersistRequested]], *, using: str) -> None:
    """Publish ``memory.extract.requested`` for each message in the history that a user wrote and that has text.

    ``SMARTFLOW['MEMORY_ENABLED']`` switches it off.
    """
    said = [each for each in deliveries if each.payload.role == _USER and each.payload.message.strip()]
    if not said or not smartflow_settings().memory_enabled:
        return
    kept = ChatHistory.objects.using(using).filter(event_id__in=[each.event_id for each in said])
    message_ids = dict(kept.values_list("event_id", "id"))
    # One INSERT for all that belong to one trace: without tracing, for all.
    for trace, of_trace in groupby(said, key=lambda each: each.traceparent):
        with traceparent(trace):
            publish_many(
                [
                    memory_extract(
                        user_id=each.payload.user_id,
                        conversation_id=each.payload.conversation_id,
                        source_role=each.payload.role,
                        source_text=each.payload.message,
                        source_message_id=message_ids[each.event_id],
                    )
                    for each in of_trace
                ],
                using=using,
            )
