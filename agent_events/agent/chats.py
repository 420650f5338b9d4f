"""Chats: what their messages and other uses of tokens add up to. A chat that is missing is created."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agent_events.agent.events import ChatHistoryPersistRequested, ChatTokenUsageAdjustRequested
from agent_events.agent.models import AgentChat
from outbox.bulk import BulkInsert

_TABLE: Final = AgentChat._meta.db_table


@dataclass(slots=True)
class _Sum:
    messages: int = 0
    tokens: int = 0


def count_messages(messages: Iterable[ChatHistoryPersistRequested], *, using: str) -> None:
    """Add messages and their tokens to their chats, in the caller's transaction."""
    sums: dict[tuple[str, int], _Sum] = defaultdict(_Sum)
    for message in messages:
        of_chat = sums[message.conversation_id, message.user_id]
        of_chat.messages += 1
        of_chat.tokens += message.tokens_consumed
    _WITH_MESSAGES.run(_rows(sums), using=using)


def add_tokens(usages: Iterable[ChatTokenUsageAdjustRequested], *, using: str) -> None:
    """Add tokens to their chats, in the caller's transaction."""
    sums: dict[tuple[str, int], _Sum] = defaultdict(_Sum)
    for usage in usages:
        sums[usage.conversation_id, usage.user_id].tokens += usage.tokens_delta
    _TOKENS_ONLY.run(_rows(sums), using=using)


def _rows(sums: dict[tuple[str, int], _Sum]) -> list[tuple[str, int, int, int]]:
    return [(*chat, of_chat.messages, of_chat.tokens) for chat, of_chat in sorted(sums.items())]


def _adding(*clock_columns: str) -> dict[str, str]:
    """Return the clauses that add to the sums of a chat that is there."""

    def assignments(new: str) -> str:
        sums = [f"{column} = {_TABLE}.{column} + {new.format(column)}" for column in ("message_count", "tokens_total")]
        return ", ".join([*sums, *(f"{column} = {{now}}" for column in clock_columns)])

    standard = f"ON CONFLICT (conversation_id, user_id) DO UPDATE SET {assignments('EXCLUDED.{}')}"
    mysql = f"ON DUPLICATE KEY UPDATE {assignments('VALUES({})')}"
    return {"mysql": mysql, "postgresql": standard, "sqlite": standard}


_COLUMNS: Final = ("conversation_id", "user_id", "message_count", "tokens_total")
_WITH_MESSAGES: Final = BulkInsert(
    table=_TABLE,
    columns=_COLUMNS,
    clock_columns=("last_message_at",),
    on_conflict=_adding("last_message_at", "updated_at"),
)
_TOKENS_ONLY: Final = BulkInsert(table=_TABLE, columns=_COLUMNS, on_conflict=_adding("updated_at"))
