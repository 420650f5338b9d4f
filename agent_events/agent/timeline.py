"""The timeline of chats: one step a seq; a step whose seq is taken by another goes behind the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from django.db import IntegrityError, transaction
from django.db.models import Max, Q, QuerySet

from agent_events.agent.events import AgentTimelinePersistRequested
from agent_events.agent.models import AgentTimelineEvent
from outbox import Retry
from outbox.bulk import BulkInsert

MAX_TRIES: Final = 3

_INSERT: Final = BulkInsert(
    table=AgentTimelineEvent._meta.db_table,
    columns=(
        "chat_id",
        "user_id",
        "seq",
        "requested_seq",
        "kind",
        "role",
        "content",
        "payload_json",
        "tokens_consumed",
    ),
)


def add(steps: Sequence[AgentTimelinePersistRequested], *, using: str) -> None:
    """Add steps in the caller's transaction, in their order.

    :raises Retry: every seq that was tried for a step was taken by somebody else meanwhile.
    """
    if not _inserted([(step, step.seq) for step in steps], using=using):
        # Rare: some seq is taken. Then it is step by step, as if they had come alone.
        for step in steps:
            _add_one(step, using=using)


def _add_one(step: AgentTimelinePersistRequested, *, using: str) -> None:
    seq = step.seq
    for _ in range(MAX_TRIES):
        if _inserted([(step, seq)], using=using) or _is_repeat(step, using=using):
            return
        seq = next_free_seq(step, using=using)
    raise Retry(f"seq {step.seq} of chat {step.conversation_id!r} is taken, and so was each of {MAX_TRIES - 1} others")


def next_free_seq(step: AgentTimelinePersistRequested, *, using: str) -> int:
    """Return the seq behind the last one, so that what comes later stands later, also when there is a gap."""
    return 1 + (_of_chat(step, using).aggregate(last=Max("seq"))["last"] or 0)


def _is_repeat(step: AgentTimelinePersistRequested, *, using: str) -> bool:
    """Say whether the step is there: at its seq, or where an earlier repeat of it went."""
    candidates = _of_chat(step, using).filter(Q(seq=step.seq) | Q(requested_seq=step.seq))
    return any(_content(row) == _content(step) for row in candidates)


def _of_chat(step: AgentTimelinePersistRequested, using: str) -> QuerySet[AgentTimelineEvent]:
    return AgentTimelineEvent.objects.using(using).filter(chat_id=step.conversation_id, user_id=step.user_id)


def _content(step: AgentTimelinePersistRequested | AgentTimelineEvent) -> tuple[object, ...]:
    """Return what two steps have to share to be the same; an absent text and an empty one are the same."""
    return step.kind, step.role or "", step.content or "", step.payload_json or "", step.tokens_consumed


def _inserted(steps: Sequence[tuple[AgentTimelinePersistRequested, int]], *, using: str) -> bool:
    """Insert steps at the given seqs, all or none; say which. The caller's transaction goes on unharmed."""
    rows = [
        (
            step.conversation_id,
            step.user_id,
            seq,
            step.seq,
            step.kind,
            step.role,
            step.content,
            step.payload_json,
            step.tokens_consumed,
        )
        for step, seq in steps
    ]
    try:
        with transaction.atomic(using=using):
            _INSERT.run(rows, using=using)
    except IntegrityError:
        return False
    return True
