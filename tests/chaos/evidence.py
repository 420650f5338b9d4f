"""What a run left behind: rows, effects, journals, rejected records; and the history of one event."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Final

from kafka.partitioner.default import murmur2

from tests.acceptance.plans import Journal, read_journal
from tests.acceptance.probe import trace
from tests.acceptance.promises import EffectRow, Row
from tests.chaos.cluster import SERVICES, Cluster
from tests.chaos.crew import BATCH_SIZES
from tests.chaos.expectations import Told, told
from tests.chaos.foreign_records import UNREADABLE_KEY
from tests.chaos.ledger import Ledger

_COLUMNS: Final = (
    "id, event_type, message_key, status, retry_count, max_retry, next_retry_at, published_at, consumed_at, dead_at,"
    " parks_key, resolved_at, created_at, updated_at, shard, last_error, traceback"
)
PARTITIONS: Final = 3
_LOG_LINES: Final = 30
_LAST_LINES: Final = 4
"""Of a traceback: the rest is in the row's own."""


@dataclass(frozen=True, slots=True)
class Work:
    """When an event went through relay and consumer, in seconds since 1970; what has not come is endless."""

    id: int
    event_id: str
    key: str
    retry_count: int
    created_at: float
    published_at: float
    consumed_at: float
    pid: int | None
    """Of the consumer, where it is known."""

    @property
    def partition(self) -> int:
        return int((murmur2(self.key.encode()) & 0x7FFFFFFF) % PARTITIONS)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejected record."""

    key: bytes | None
    partition: int
    offset: int
    reason: str
    topic: str = ""


class Evidence:
    """Read once, when nothing moves any more."""

    def __init__(self, cluster: Cluster) -> None:
        self.installation = cluster.installation
        self.ledger: Ledger = cluster.ledger
        self.rows = {service: self.installation.rows(service) for service in SERVICES}
        self.effects = self.installation.effects()
        database = self.installation.database
        self.business = {row[0] for row in database.query("SELECT event_id FROM probe_business_rows")}
        self.told: dict[int, Told | None] = {
            row[0]: told(row[1]) for row in database.query("SELECT id, payload FROM probe_outbox_messages")
        }
        self.interruptions = self._interruptions()
        """How many each event has in a row, by service and row; nothing where the table does not say so."""
        self.marks = trace.read(self.installation.trace_path)
        self.max_retry: dict[int, int] = dict(database.query("SELECT id, max_retry FROM probe_outbox_messages"))
        self.rejected = [
            Rejected(key_of(key, value), partition, offset, reason, topic)
            for key, value, partition, offset, reason, topic in database.query(
                "SELECT `key`, CASE WHEN `key` IS NULL THEN value END, `partition`, `offset`, reason, topic"
                " FROM outbox_rejected_records ORDER BY id"
            )
        ]
        self.snapshots = database.query("SELECT conversation_id, outbox_id FROM agent_state_snapshot_records")
        self.journal = self._journal()
        self.works = {service: list(self._works(service)) for service in SERVICES}

    @property
    def all_rows(self) -> list[Row]:
        return [row for rows in self.rows.values() for row in rows]

    def _interruptions(self) -> dict[tuple[str, int], int]:
        database = self.installation.database
        found: dict[tuple[str, int], int] = {}
        for service in SERVICES:
            table = f"{service}_outbox_messages"
            if database.query(f"SHOW COLUMNS FROM {table} LIKE 'interruptions'"):
                found |= {(service, row[0]): row[1] for row in database.query(f"SELECT id, interruptions FROM {table}")}
        return found

    def _journal(self) -> Journal:
        """Return what the writers wrote down, with the rows of plain SQL, and with what a killed writer could not say.

        A business row is written in the transaction of its event: it proves that a writer published the event.
        """
        journal = self.installation.read_journals()
        by_key = {row.key: row.event_id for row in self.rows["probe"]}
        for written in self.ledger.sql_rows.values():
            known = journal.committed if written.is_certain else journal.unknown
            known.add(by_key.get(written.key, f"(the row with key {written.key})"))
        journal.unknown |= self.business - journal.committed - journal.rolled_back
        return journal

    def _works(self, service: str) -> Iterator[Work]:
        pids = {effect.outbox_id: effect.worker_pid for effect in self.effects} if service == "probe" else {}
        event_ids = {row.id: row.event_id for row in self.rows[service]}
        found = self.installation.database.query(
            "SELECT id, message_key, retry_count, created_at, published_at, consumed_at"
            f" FROM {service}_outbox_messages ORDER BY id"
        )
        for row_id, key, retry_count, created_at, published_at, consumed_at in found:
            yield Work(
                id=row_id,
                event_id=event_ids[row_id],
                key=key,
                retry_count=retry_count,
                created_at=_moment(created_at),
                published_at=_moment(published_at),
                consumed_at=_moment(consumed_at),
                pid=pids.get(row_id),
            )

    # --- the history of one event --------------------------------------------------------------------------------

    def history(self, event_id: str) -> Iterator[str]:
        """Return all that is known of one event, line by line."""
        yield f"history of event {event_id}"
        for service, rows in self.rows.items():
            for row in rows:
                if row.event_id == event_id:
                    yield from self._row(service, row.id)
                    if service == "probe":
                        yield from self._handler_runs(row.id)
                    yield from self._log_lines(f"row {row.id} ", service)
        yield from self._journal_entries(event_id)

    def _row(self, service: str, row_id: int) -> Iterator[str]:
        database = self.installation.database
        found = database.query(f"SELECT {_COLUMNS} FROM {service}_outbox_messages WHERE id = {row_id}")
        for name, value in zip(_COLUMNS.split(","), found[0], strict=True):
            lines = str(value).splitlines() or [""]
            yield f"  {service} row {row_id}: {name.strip()} = {' / '.join(lines[-_LAST_LINES:])}"

    def _handler_runs(self, row_id: int) -> Iterator[str]:
        for mark in self.marks:
            if mark.outbox_id == row_id:
                yield f"  handler: {mark.what}, attempt {mark.attempt}, process {mark.pid}"
        columns = "id, event_id, message_key, attempt, worker_pid, made_at"
        made = f"SELECT {columns} FROM probe_effects WHERE outbox_id = {row_id}"
        for effect in self.installation.database.query(made):
            yield f"  effect: {effect}"

    def _journal_entries(self, event_id: str) -> Iterator[str]:
        for path in sorted(self.installation.folder.glob("journal-*.jsonl")):
            for entry in read_journal(path):
                if event_id in entry.event_ids:
                    yield f"  journal {path.name}: {entry.outcome}, together with {entry.event_ids}"

    def _log_lines(self, text: str, service: str) -> Iterator[str]:
        found = [
            f"  {worker.log.name}: {line}"
            for worker in self.installation.workers
            for line in worker.text.splitlines()
            if text in line and f"of {service}" in line
        ]
        yield from found[:_LOG_LINES]

    @cached_property
    def parted(self) -> frozenset[int]:
        """The rows whose effects a handler's own COMMIT may have parted from their mark: its batch.

        Nothing that runs inside of a transaction can undo a COMMIT, so these may have taken effect more than once.
        """
        found: set[int] = set()
        latest: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=max(BATCH_SIZES)))
        for mark in self.marks:
            if mark.what == "commit":
                found.update(latest[mark.pid])
            elif mark.what == "begin":
                latest[mark.pid].append(mark.outbox_id)
        return frozenset(found)

    @cached_property
    def kept_effects(self) -> list[EffectRow]:
        """The effects, without those that only a handler's own COMMIT has made: of a parted one the last counts."""
        last = {effect.outbox_id: number for number, effect in enumerate(self.effects)}
        return [
            effect
            for number, effect in enumerate(self.effects)
            if effect.outbox_id not in self.parted or last[effect.outbox_id] == number
        ]

    @cached_property
    def killed_itself(self) -> frozenset[int]:
        """The processes that a handler ended."""
        return frozenset(mark.pid for mark in self.marks if mark.what == "kill")

    @cached_property
    def event_ids(self) -> frozenset[str]:
        """The ids of all events that have a row or are in a journal."""
        known = {row.event_id for row in self.all_rows}
        return frozenset(known | self.journal.committed | self.journal.rolled_back | self.journal.unknown)


def key_of(key: bytes | None, value: bytes | None) -> bytes | None:
    """Return by what key a rejected record is known: one that stands for an unreadable batch has it in its value."""
    if key is not None:
        return bytes(key)
    found = UNREADABLE_KEY.search(bytes(value or b""))
    return found.group() if found else None


def _moment(found: datetime | None) -> float:
    return math.inf if found is None else found.replace(tzinfo=UTC).timestamp()
