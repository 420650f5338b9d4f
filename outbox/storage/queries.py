"""The texts of the searches for outbox rows: what is due, what waits for its consumer, what goes before an event.

They write nothing; which index serves which of them: docs/indexes.md. A search is a statement and its parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from outbox.declarations.routes import TYPE_COLUMN
from outbox.lifecycle import Status
from outbox.models import BlockedKey
from outbox.storage.conditions import BLOCKS_ITS_KEY, due, due_branches
from outbox.storage.dialects import Dialect, id_list, placeholders
from outbox.storage.rows import Keyed

Search = tuple[str, list[Any]]
BLOCKED_KEYS: Final = BlockedKey._meta.db_table


@dataclass(frozen=True, slots=True)
class Searches:
    """Searches of one table. Rows of ``foreign_types`` belong to other services and are left out."""

    table: str
    sql: Dialect
    foreign_types: tuple[str, ...]
    type_column: str = TYPE_COLUMN

    def oldest_due(self, shards: Collection[int] | None, limit: int) -> Search:
        """Return the search for the rows that are due the longest; a row without a due time goes before all others.

        Where an index ends with NULL, such rows are looked for by themselves: behind a backlog that never ends, they
        would never be sent, and what waits for them would make it never end.
        """
        conditions, parameters = self._in_shards(Status.PENDING, shards)
        scope = f"SELECT id, next_retry_at FROM {self.table} WHERE {conditions}"
        in_order = "ORDER BY next_retry_at, id LIMIT %s"
        if self.sql.nulls_first:
            return f"{scope} AND {due(self.sql.now)} {in_order}", [*parameters, limit]
        both = " UNION ALL ".join(f"({scope} AND {branch} {in_order})" for branch in due_branches(self.sql.now))
        return (
            f"({both}) ORDER BY next_retry_at NULLS FIRST, id LIMIT %s",
            [*parameters, limit, *parameters, limit, limit],
        )

    def due_after(self, after: tuple[Any, int], shards: Collection[int] | None, limit: int) -> Search:
        """Return the search for due rows behind the last one of an earlier claim.

        However many rows have one due time, as those of one replay do: the index is read from that row on.
        """
        conditions, parameters = self._in_shards(Status.PENDING, shards)
        _, is_due = due_branches(self.sql.now)
        moment, last_id = after
        behind = [moment, last_id, moment][: self.sql.behind_row.count("%s")]
        statement = (
            f"SELECT id FROM {self.table}{self.sql.by_secondary_index} WHERE {conditions}"
            f" AND {is_due} AND {self.sql.behind_row} ORDER BY next_retry_at, id LIMIT %s"
        )
        return statement, [*parameters, *behind, limit]

    def stuck(self, shards: Collection[int] | None, published_before: Any, limit: int) -> Search:
        """Return the search for rows whose time to be delivered again has come, published before a moment."""
        conditions, parameters = self._in_shards(Status.PUBLISHED, shards)
        statement = (
            f"SELECT id FROM {self.table} WHERE {conditions}"
            f" AND {due(self.sql.now)}"
            " AND COALESCE(published_at, updated_at) < %s ORDER BY next_retry_at, id LIMIT %s"
        )
        return statement, [*parameters, published_before, limit]

    def waiting(self, shards: Collection[int] | None, limit: int) -> Search:
        """Return the search for published rows, those that wait the longest first."""
        conditions, parameters = self._in_shards(Status.PUBLISHED, shards)
        statement = f"SELECT id FROM {self.table} WHERE {conditions} ORDER BY next_retry_at, id LIMIT %s"
        return statement, [*parameters, limit]

    def oldest_unfinished(self, service: str, locked: Sequence[Keyed], *, foreign_too: bool) -> Search:
        """Return the search for (key, id): the smallest unfinished and parking ids before the last of ``locked``.

        It finds the notes of blocked keys, too: no key, and the note's id below 0, as a note's key may be of another
        collation than the table's.

        ``foreign_too`` takes rows of foreign types for unfinished ones: leaving them out costs the search its
        index-only reading.

        ``id + 0`` is no column, so no optimizer reads the index by it. MySQL 9.7 would answer ``MIN(id) … GROUP BY
        message_key`` by a skip scan that takes the smallest id of a key before it has applied the conditions, and
        ``id NOT IN`` by ranges between all of the ids for each of the keys.

        A collation that takes several keys for one finds the rows of all of them; each key has an answer of its own.
        """
        keys = sorted({row.message_key for row in locked})
        ids = [row.id for row in locked]
        scope = f"message_key IN ({placeholders(keys)}) AND id < %s AND id + 0 NOT IN ({id_list(ids)})"
        parameters: list[Any] = [*keys, max(ids)]
        if not foreign_too:
            scope += f" AND {self.sql.is_none_of(self.type_column, self.foreign_types)}"
            parameters += self.foreign_types
        each_key = self.sql.grouped.format("message_key")
        oldest = f"SELECT message_key, MIN(id + 0) FROM {self.table} WHERE {scope} AND"
        branches = [f"{oldest} {blocks} GROUP BY {each_key}" for blocks, _ in BLOCKS_ITS_KEY]
        notes = f"SELECT '', -id FROM {BLOCKED_KEYS} WHERE service = %s AND message_key IN ({placeholders(keys)})"
        values = [each for _, values in BLOCKS_ITS_KEY for each in (*parameters, *values)]
        return " UNION ALL ".join([*branches, notes]), [*values, service, *keys]

    def _in_shards(self, status: Status, shards: Collection[int] | None) -> Search:
        conditions, parameters = "status = %s", [status.value]
        if shards is not None:
            conditions += f" AND shard IN ({id_list(shards)})" if shards else " AND 1 = 0"
        if self.foreign_types:
            conditions += f" AND {self.sql.is_none_of(self.type_column, self.foreign_types)}"
            parameters += self.foreign_types
        return conditions, parameters
