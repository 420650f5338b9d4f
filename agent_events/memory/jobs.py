"""The jobs of the memory service: one a text, whoever asks how often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent_events.memory.events import MemoryExtractRequested
from agent_events.memory.models import MemoryJob
from outbox.bulk import BulkInsert, ignoring_known

MAX_RETRY: Final = 6

_INSERT: Final = BulkInsert(
    table=MemoryJob._meta.db_table,
    columns=(
        "idempotency_key",
        "job_type",
        "status",
        "user_id",
        "conversation_id",
        "assistant_id",
        "run_id",
        "source_message_id",
        "source_role",
        "source_text",
        "occurred_at",
        "trace_id",
        "max_retry",
    ),
    on_conflict=ignoring_known("idempotency_key"),
)


def enqueue(extracts: Sequence[MemoryExtractRequested], *, using: str) -> None:
    """Insert the jobs whose key is not known, in few statements in the caller's transaction."""
    first: dict[str, MemoryExtractRequested] = {}
    for extract in extracts:
        first.setdefault(extract.idempotency_key, extract)
    # In the order of the events and not of the keys: jobs are worked on in the order of their ids.
    _INSERT.run([_row(extract) for extract in first.values()], using=using)


def _row(extract: MemoryExtractRequested) -> tuple[object, ...]:
    return (
        extract.idempotency_key,
        MemoryJob.JobType.EXTRACT.value,
        MemoryJob.Status.PENDING.value,
        extract.user_id,
        extract.conversation_id,
        extract.assistant_id,
        extract.run_id,
        extract.source_message_id,
        extract.source_role,
        extract.source_text,
        extract.occurred_at,
        extract.trace_id,
        MAX_RETRY,
    )
