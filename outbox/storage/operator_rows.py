"""Rows as an operator and the cleaner change them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from outbox import lifecycle
from outbox.fields import storable
from outbox.lifecycle import Status
from outbox.storage.blocked_keys import BlockedKeyRows
from outbox.storage.dialects import id_list, moment_of
from outbox.storage.rows import Pruned
from outbox.storage.sessions import own_transaction


@dataclass(frozen=True, slots=True)
class OperatorRows(BlockedKeyRows):
    """What people and the cleaner do with the rows of a service."""

    def replay(self, ids: Sequence[int]) -> int:
        """Send dead rows again, with all their attempts before them; return how many were dead.

        What waits behind them is released when they are finished.
        """
        return self._move(
            lifecycle.REPLAY,
            ids,
            f"retry_count = 0, replay_count = replay_count + 1, interruptions = 0, next_retry_at = {self._sql.now},"
            " dead_at = NULL, parks_key = %s, resolved_at = NULL, resolved_by = '', resolution = ''",
            [False],
        )

    def give_up(self, ids: Sequence[int], *, by: str, reason: str) -> int:
        """Take dead rows off the open list for good; return how many were dead and open.

        What waits behind them is released, in the same transaction.
        """
        with own_transaction(self.route.database):
            moved = self._move(
                lifecycle.GIVE_UP,
                ids,
                f"resolved_at = {self._sql.now}, resolved_by = %s, resolution = %s, parks_key = %s",
                [storable(by, 150), storable(reason, 500), False],
                also=("resolved_at IS NULL", []),
            )
            if moved:
                self.release_behind_rows(ids)
        return moved

    def edit(self, row_id: int, *, payload: bytes) -> int:
        """Replace the payload column of a dead row; return 0 when it is not dead any more."""
        return self._move(lifecycle.EDIT, [row_id], "payload = %s", [payload.decode()])

    def prune(self, *, consumed_before: datetime, after_id: int, limit: int) -> Pruned:
        """Delete consumed rows among the next ``limit`` rows behind ``after_id``, oldest first, by primary key.

        Rows are picked first and deleted by id, skipping locked ones: a cleaner that deletes by status deadlocks with
        consumers (docs/performance.md).
        """
        window = self._fetch(
            f"SELECT id, status, {self._sql.dated.format('consumed_at')}, {self._sql.dated.format('created_at')}"
            f" FROM {self._table} WHERE id > %s ORDER BY id LIMIT %s",
            [after_id, limit],
        )
        if not window:
            return Pruned()
        candidates = [
            row_id
            for row_id, status, consumed_at, _ in window
            if status == Status.CONSUMED and _is_before(consumed_at, consumed_before)
        ]
        deleted = 0
        ids = self._find([Status.CONSUMED], candidates, lock=True)
        if ids:
            deleted = self._execute(self._sql.delete_by_id.format(table=self._table, ids=id_list(ids)))
        # Ids grow with time, so behind a row as young as the limit there is nothing left to delete.
        reached_young = not any(_is_before(row[3], consumed_before, unknown=True) for row in window)
        return Pruned(deleted, None if reached_young or len(window) < limit else window[-1][0])


def _is_before(value: Any, limit: datetime, *, unknown: bool = False) -> bool:
    """Say whether a column's moment lies before ``limit``; ``unknown`` where it has none."""
    moment = moment_of(value)
    return unknown if moment is None else moment < limit
