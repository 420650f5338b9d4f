"""Checks, row by row, what became of a demo's events."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import Any

from agent_events.agent.models import AgentOutboxMessage, AgentStateSnapshotRecord
from outbox.models import RejectedRecord
from scripts.demo.app.models import LedgerEntry
from scripts.demo.story import Published, Turn


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked: how often it held, of how many, and the first cases where it did not."""

    what: str
    held: int
    of: int
    broken: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.held == self.of and not self.broken


@dataclass(frozen=True, slots=True)
class Row:
    """An outbox row as it ended."""

    id: int
    event_id: str
    event_type: str
    message_key: str
    status: str
    retry_count: int
    reason: str
    created_at: datetime
    consumed_at: datetime | None


class Audit:
    """Compares what was ``published`` with what is in the database."""

    def __init__(self, published: Published, *, garbage: int) -> None:
        self._published = published
        self._garbage = garbage
        self.rows = _rows()
        self._by_event_id: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            self._by_event_id[row.event_id].append(row)

    def checks(self) -> list[Check]:
        """Check everything."""
        return [
            self._every_event_consumed(),
            self._newest_snapshot_wins(),
            self._one_effect_each_in_order(),
            self._failures_were_retried(),
            self._poison_is_dead(),
            self._rolled_back_is_nowhere(),
            self._strangers_are_kept(),
        ]

    def _every_event_consumed(self) -> Check:
        event_ids = [*self._published.snapshots, *self._published.steps]
        broken = []
        for event_id in event_ids:
            found = [row.status for row in self._by_event_id[event_id]]
            if found != ["consumed"]:
                broken.append(f"event {event_id} has rows {found}")
        return _check("published events that are consumed, one row each", event_ids, broken)

    def _newest_snapshot_wins(self) -> Check:
        """The highest outbox id of a conversation is its newest event; its content must be what is kept."""
        newest: dict[str, tuple[int, Turn]] = {}
        for event_id, turn in self._published.snapshots.items():
            for row in self._by_event_id[event_id]:
                newest[turn.conversation_id] = max(
                    (row.id, turn), newest.get(turn.conversation_id, (0, turn)), key=lambda pair: pair[0]
                )
        kept = {record.conversation_id: record for record in AgentStateSnapshotRecord.objects.all()}
        broken = [f"{name} has a snapshot that nobody published" for name in kept.keys() - newest.keys()]
        for name, (outbox_id, turn) in newest.items():
            record = kept.get(name)
            expected: tuple[Any, ...] = (outbox_id, turn.user_id, turn.state.phase, turn.state.version)
            found = record and (
                record.outbox_id,
                record.user_id,
                record.phase,
                json.loads(record.snapshot_json)["version"],
            )
            if found != expected:
                broken.append(f"{name}: expected (row, user, phase, version) {expected}, found {found}")
        return _check("conversations whose newest snapshot is kept", newest, broken)

    def _one_effect_each_in_order(self) -> Check:
        """The ledger has no unique key: a second effect would be a second entry."""
        expected: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for event_id, turn in self._published.steps.items():
            for row in self._by_event_id[event_id]:
                expected[turn.conversation_id].append((row.id, turn.step or 0))
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for entry in LedgerEntry.objects.order_by("id"):
            found[entry.conversation_id].append((entry.outbox_id, entry.step))
        broken = []
        for name in sorted(expected.keys() | found.keys()):
            if found[name] != sorted(expected[name]):
                broken.append(f"{name}: {_first_difference(sorted(expected[name]), found[name])}")
        held = sum(len(entries) for name, entries in found.items() if entries == sorted(expected[name]))
        return Check("steps that took effect once and in order", held, len(self._published.steps), tuple(broken[:3]))

    def _failures_were_retried(self) -> Check:
        broken = []
        failing = {event_id: turn for event_id, turn in self._published.steps.items() if turn.failures}
        for event_id, turn in self._published.steps.items():
            for row in self._by_event_id[event_id]:
                if row.retry_count != turn.failures:
                    broken.append(f"row {row.id} failed {row.retry_count} times instead of {turn.failures}")
        for entry in LedgerEntry.objects.filter(outbox_id__in=self._ids(failing)):
            if entry.attempt == 1:
                broken.append(f"row {entry.outbox_id}: what its first attempt wrote was not rolled back")
        return _check("failing events that were retried until they worked", failing, broken)

    def _poison_is_dead(self) -> Check:
        rows = {row.id: row for row in self.rows}
        broken = []
        for row_id, poison in self._published.poisons.items():
            row = rows.get(row_id)
            if row is None or row.status != "dead" or poison.reason not in row.reason:
                broken.append(f"row {row_id} ({poison.fault}): {row}")
        dead = {row.id for row in self.rows if row.status == "dead"}
        broken += [f"row {row_id} is dead and should not be" for row_id in dead - self._published.poisons.keys()]
        return _check("poisonous rows that are dead, each with its own reason", self._published.poisons, broken)

    def _rolled_back_is_nowhere(self) -> Check:
        event_ids = self._published.rolled_back
        broken = [f"event {event_id} is there" for event_id in event_ids if self._by_event_id.get(event_id)]
        return _check("rolled back events that are nowhere", event_ids, broken)

    def _strangers_are_kept(self) -> Check:
        found = RejectedRecord.objects.count()
        broken = [] if found == self._garbage else [f"{found} records are kept, {self._garbage} should be"]
        what = "records on the topic that are nobody's and are kept"
        return Check(what, min(found, self._garbage), self._garbage, tuple(broken))

    def _ids(self, event_ids: Collection[str]) -> list[int]:
        return [row.id for event_id in event_ids for row in self._by_event_id[event_id]]


def _check(what: str, all_of: Collection[object], broken: Sequence[str]) -> Check:
    return Check(what, max(0, len(all_of) - len(broken)), len(all_of), tuple(broken[:3]))


def _first_difference(expected: Sequence[tuple[int, int]], found: Sequence[tuple[int, int]]) -> str:
    for place, (wanted, got) in enumerate(zip_longest(expected, found), start=1):
        if wanted != got:
            return f"entry {place} (row, step) should be {wanted} and is {got}"
    return "no difference"


def _rows() -> list[Row]:
    columns = (
        "id",
        "payload",
        "event_type",
        "message_key",
        "status",
        "retry_count",
        "last_error",
        "created_at",
        "consumed_at",
    )
    return [
        Row(row_id, _event_id(payload), event_type, key, status, retries, reason or "", created_at, consumed_at)
        for row_id, payload, event_type, key, status, retries, reason, created_at, consumed_at in (
            AgentOutboxMessage.objects.order_by("id").values_list(*columns)
        )
    ]


def _event_id(payload: str) -> str:
    try:
        return str(json.loads(payload)["event_id"])
    except ValueError:
        return ""
