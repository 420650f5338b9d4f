"""Checks, row by row, what became of a demo's events."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import zip_longest
from typing import Any

from agent_events.agent.models import AgentStateSnapshotRecord
from outbox.models import RejectedRecord
from scripts.demo.app.models import LedgerEntry
from scripts.demo.checks import Check, check, check_consumed
from scripts.demo.rows import Row, by_event_id, read_rows
from scripts.demo.stage import SERVICE
from scripts.demo.story import Poison, Published, Turn


class Audit:
    """Compares what was ``published`` with what is in the database."""

    def __init__(self, published: Published, *, garbage: int) -> None:
        self._published = published
        self._garbage = garbage
        self.rows = read_rows()
        self._by_event_id = by_event_id(self.rows)

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
        return check_consumed("published events that are consumed, one row each", event_ids, self._by_event_id)

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
        return check("conversations whose newest snapshot is kept", newest, broken)

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
        return check("failing events that were retried until they worked", failing, broken)

    def _poison_is_dead(self) -> Check:
        rows = {row.id: row for row in self.rows if row.service == SERVICE}
        broken = []
        for row_id, poison in self._published.poisons.items():
            row = rows.get(row_id)
            if row is None or row.status != "dead" or poison.reason not in row.reason:
                broken.append(f"row {row_id} ({poison.fault}): {row}")
        dead = [row for row in self.rows if row.status == "dead"]
        broken += [f"{row} should not be dead" for row in dead if not self.poison_of(row)]
        return check("poisonous rows that are dead, each with its own reason", self._published.poisons, broken)

    def _rolled_back_is_nowhere(self) -> Check:
        event_ids = self._published.rolled_back
        broken = [f"event {event_id} is there" for event_id in event_ids if self._by_event_id.get(event_id)]
        return check("rolled back events that are nowhere", event_ids, broken)

    def _strangers_are_kept(self) -> Check:
        found = RejectedRecord.objects.count()
        broken = [] if found == self._garbage else [f"{found} records are kept, {self._garbage} should be"]
        what = "records on the topic that are nobody's and are kept"
        return Check(what, min(found, self._garbage), self._garbage, tuple(broken))

    def poison_of(self, row: Row) -> Poison | None:
        """Return what was published as ``row``, if it was poisonous."""
        return self._published.poisons.get(row.id) if row.service == SERVICE else None

    def _ids(self, event_ids: Collection[str]) -> list[int]:
        return [row.id for event_id in event_ids for row in self._by_event_id[event_id]]


def _first_difference(expected: Sequence[tuple[int, int]], found: Sequence[tuple[int, int]]) -> str:
    for place, (wanted, got) in enumerate(zip_longest(expected, found), start=1):
        if wanted != got:
            return f"entry {place} (row, step) should be {wanted} and is {got}"
    return "no difference"
