"""The store of state snapshots: one row a conversation, the newest event wins whatever the order of arrival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db import connections

from agent_events.agent.models import AgentStateSnapshotRecord
from outbox.sql import dialect_of

_TABLE: Final = AgentStateSnapshotRecord._meta.db_table
_COLUMNS: Final = ("user_id", "phase", "snapshot_json", "updated_at")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot and the id of the event that brought it."""

    conversation_id: str
    user_id: int
    phase: str
    snapshot_json: str
    outbox_id: int


def save(snapshots: Sequence[Snapshot], *, using: str) -> None:
    """Keep the newest snapshot of each conversation, in one statement in the caller's transaction."""
    newest: dict[str, Snapshot] = {}
    for snapshot in snapshots:
        known = newest.get(snapshot.conversation_id)
        if known is None or snapshot.outbox_id > known.outbox_id:
            newest[snapshot.conversation_id] = snapshot
    # Sorted, so that two transactions lock the same conversations in the same order.
    rows = [newest[conversation_id] for conversation_id in sorted(newest)]
    if not rows:
        return
    connection = connections[using]
    now = dialect_of(connection).now
    values = ", ".join([f"(%s, %s, %s, %s, %s, {now}, {now})"] * len(rows))
    parameters: list[Any] = []
    for row in rows:
        parameters += [row.conversation_id, row.user_id, row.phase, row.snapshot_json, row.outbox_id]
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {_TABLE} (conversation_id, user_id, phase, snapshot_json, outbox_id, created_at, updated_at)"
            f" VALUES {values} {_ON_CONFLICT[connection.vendor]}",
            parameters,
        )


def _mysql_guard() -> str:
    """Give each column the condition that MySQL has no place for; the guard is last, as assignments run in order.

    ``VALUES()`` and not a row alias: MariaDB does not know the alias, MySQL 8 deprecates but keeps the function.
    """
    is_newer = "VALUES(outbox_id) > outbox_id"
    assignments = [f"{column} = IF({is_newer}, VALUES({column}), {column})" for column in (*_COLUMNS, "outbox_id")]
    return f"ON DUPLICATE KEY UPDATE {', '.join(assignments)}"


def _standard_guard() -> str:
    assignments = ", ".join(f"{column} = EXCLUDED.{column}" for column in (*_COLUMNS, "outbox_id"))
    return f"ON CONFLICT (conversation_id) DO UPDATE SET {assignments} WHERE {_TABLE}.outbox_id < EXCLUDED.outbox_id"


_ON_CONFLICT: Final = {"mysql": _mysql_guard(), "postgresql": _standard_guard(), "sqlite": _standard_guard()}
