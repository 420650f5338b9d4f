"""Filling the outbox table quickly with rows as ``publish`` writes them, and looking at it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.arithmetic import Step
from benchmarks.installation import Installation

TABLE: Final = "agent_outbox_messages"
_COPIED: Final = ("event_type", "service_name", "topic", "max_retry", "traceparent")
_CHUNK: Final = 50_000
_CHUNK_BYTES: Final = 50_000_000
"""One INSERT's changes fit several times into the services' redo log."""
_DIGITS: Final = " UNION ALL ".join(["SELECT 0 AS digit", *(f"SELECT {digit}" for digit in range(1, 10))])
"""Joined with itself it counts, on MySQL too, which has no tables ``seq_1_to_…`` and ends a recursion after 1,000."""
_PRIME: Final = 7_919
"""Neighbouring rows get keys that are far from each other, as with many conversations at a time."""


@dataclass(frozen=True, slots=True)
class Template:
    """A row as ``publish`` wrote it: the other rows are its copies with keys and event ids of their own."""

    copied: Mapping[str, Any]
    payload: str
    key: str
    event_id: str

    def payload_sql(self, key: str) -> tuple[str, list[str]]:
        """Return an expression for the payload of a row whose key is the expression ``key``, and its parameters."""
        pieces = re.split(f"({re.escape(self.key)}|{re.escape(self.event_id)})", self.payload)
        computed = {self.key: key, self.event_id: "LEFT(SHA2(CONCAT(seq, RAND()), 256), 32)"}
        terms = [computed.get(piece, "%s") for piece in pieces]
        return f"CONCAT({', '.join(terms)})", [piece for piece in pieces if piece not in computed]


def numbers(first: int, last: int) -> str:
    """Return a table expression whose column ``seq`` counts from ``first`` to ``last``, in order."""
    count = last - first + 1
    places = range(max(len(str(count - 1)), 1))
    value = " + ".join([str(first), *(f"{10**place} * d{place}.digit" for place in places)])
    joined = " JOIN ".join(f"({_DIGITS}) d{place}" for place in places)
    # Without a limit MariaDB passes over the order of a derived table.
    return f"(SELECT {value} AS seq FROM {joined} ORDER BY seq LIMIT {count}) numbers"


class OutboxTable:
    """The agent service's table."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._connection = installation.connect()
        self.execute("SET SESSION unique_checks = 0, foreign_key_checks = 0, lock_wait_timeout = 300")

    def template(self, *, body_bytes: int) -> Template:
        """Publish one event whose payload column is about ``body_bytes`` long and take it out of the table again."""
        self.truncate()
        self._installation.writers("template", "one", "--bytes", str(body_bytes)).wait(timeout_s=60)
        columns = ("message_key", "payload", *_COPIED)
        key, payload, *copied = self.execute(f"SELECT {', '.join(columns)} FROM {TABLE}")[0]
        self.truncate()
        return Template(dict(zip(_COPIED, copied, strict=True)), payload, key, json.loads(payload)["event_id"])

    def fill(self, template: Template, *, rows: int, keys: int, more: Mapping[str, str]) -> None:
        """Add ``rows`` rows over ``keys`` keys; ``more`` gives columns as SQL of ``seq``, which counts from 1."""
        key = f"CONCAT('conv-', MOD(seq * {_PRIME}, {keys}))"
        payload, pieces = template.payload_sql(key)
        columns = [*template.copied, "message_key", "payload", *more]
        values = [*(["%s"] * len(template.copied)), key, payload, *more.values()]
        chunk = min(_CHUNK, max(_CHUNK_BYTES // len(template.payload), 1))
        for first in range(1, rows + 1, chunk):
            last = min(first + chunk - 1, rows)
            self.execute(
                f"INSERT INTO {TABLE} ({', '.join(columns)}) SELECT {', '.join(values)} FROM {numbers(first, last)}",
                [*template.copied.values(), *pieces],
            )

    def without_indexes(self) -> list[str]:
        """Drop the secondary indexes; return the statements that make them again, sorted, which is quicker."""
        indexes: dict[str, list[str]] = {}
        for row in self.execute(
            "SELECT index_name, column_name FROM information_schema.statistics WHERE table_schema = DATABASE()"
            " AND table_name = %s AND index_name <> 'PRIMARY' ORDER BY index_name, seq_in_index",
            [TABLE],
        ):
            indexes.setdefault(row[0], []).append(row[1])
        for name in indexes:
            self.execute(f"ALTER TABLE {TABLE} DROP INDEX {name}")
        return [f"ALTER TABLE {TABLE} ADD INDEX {name} ({', '.join(of)})" for name, of in indexes.items()]

    def settle(self) -> None:
        """Write the table's changed pages out and count it: a fill must not be paid for by what is measured."""
        self.execute(f"ANALYZE TABLE {TABLE}")
        self.execute(f"FLUSH TABLES {TABLE} FOR EXPORT")
        self.execute("UNLOCK TABLES")

    def truncate(self) -> None:
        """Empty it; its file is made anew."""
        self.execute(f"TRUNCATE TABLE {TABLE}")

    def count(self, condition: str = "TRUE") -> int:
        """Count rows."""
        return int(self.execute(f"SELECT COUNT(*) FROM {TABLE} WHERE {condition}")[0][0])

    def marks(self, column: str = "published_at") -> list[Step]:
        """Return when how many rows were marked, in order: rows of one mark have one moment.

        ``published_at`` is of the relay, ``consumed_at`` of the consumer.
        """
        return [
            (float(moment), int(count))
            for moment, count in self.execute(
                f"SELECT TIMESTAMPDIFF(MICROSECOND, '2000-01-01', {column}) / 1000000, COUNT(*) FROM {TABLE}"
                f" WHERE {column} IS NOT NULL GROUP BY {column} ORDER BY {column}"
            )
        ]

    def size_mib(self) -> int:
        """Return what it takes on the disk, as far as the server's statistics know."""
        self.execute(f"ANALYZE TABLE {TABLE}")
        found = self.execute(
            "SELECT data_length + index_length FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = %s",
            [TABLE],
        )
        return int(found[0][0]) // 2**20

    def buffer_pool_mib(self) -> int:
        """Return how much of all tables the server keeps in memory."""
        return int(self.execute("SELECT @@innodb_buffer_pool_size")[0][0]) // 2**20

    def status(self, name: str) -> int:
        """Return a counter of the server; it counts what everybody does there."""
        return int(self.execute("SHOW GLOBAL STATUS LIKE %s", [name])[0][1])

    def execute(self, sql: str, parameters: list[Any] | None = None) -> list[Any]:
        """Run a statement; return its rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())
