"""The store of state snapshots: one row a conversation, the newest event wins whatever the order of arrival."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from agent_events.agent.models import AgentStateSnapshotRecord
from outbox.bulk import BulkInsert

_TABLE: Final = AgentStateSnapshotRecord._meta.db_table


class Snapshot(msgspec.Struct, frozen=True):
    """A snapshot and the id of the event that brought it."""

    conversation_id: str
    user_id: int
    phase: str
    snapshot_json: str
    outbox_id: int


def save(snapshots: Sequence[Snapshot], *, using: str) -> None:
    """Keep the newest snapshot of each conversation, in few statements in the caller's transaction."""
    newest: dict[str, Snapshot] = {}
    for snapshot in snapshots:
        known = newest.get(snapshot.conversation_id)
        if known is None or snapshot.outbox_id > known.outbox_id:
            newest[snapshot.conversation_id] = snapshot
    _UPSERT.run(
        [
            (row.conversation_id, row.user_id, row.phase, row.snapshot_json, row.outbox_id)
            for _, row in sorted(newest.items())
        ],
        using=using,
    )


def _mysql_guard(columns: Sequence[str]) -> str:
    """Give each column the condition that MySQL has no place for; the guard is last, as assignments run in order.

    ``VALUES()`` and not a row alias: MariaDB does not know the alias, MySQL 8 deprecates but keeps the function.
    """
    is_newer = "VALUES(outbox_id) > outbox_id"
    assignments = [f"{column} = IF({is_newer}, VALUES({column}), {column})" for column in (*columns, "outbox_id")]
    return f"ON DUPLICATE KEY UPDATE {', '.join(assignments)}"


def _standard_guard(columns: Sequence[str]) -> str:
    assignments = ", ".join(f"{column} = EXCLUDED.{column}" for column in (*columns, "outbox_id"))
    return f"ON CONFLICT (conversation_id) DO UPDATE SET {assignments} WHERE {_TABLE}.outbox_id < EXCLUDED.outbox_id"


_REPLACED: Final = ("user_id", "phase", "snapshot_json", "updated_at")
_UPSERT: Final = BulkInsert(
    table=_TABLE,
    columns=("conversation_id", "user_id", "phase", "snapshot_json", "outbox_id"),
    clock_columns=("created_at", "updated_at"),
    on_conflict={
        "mysql": _mysql_guard(_REPLACED),
        "postgresql": _standard_guard(_REPLACED),
        "sqlite": _standard_guard(_REPLACED),
    },
)
