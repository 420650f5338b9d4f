"""What the outbox's table should hold, row by row, and the comparison with what it holds.

A step says beforehand what it is to change. Whatever it does not name has to stay as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

from django.db import transaction

from agent_events.agent.models import AgentOutboxMessage
from outbox import lifecycle
from outbox.fields import SHARD_COUNT
from outbox.lifecycle import TRANSITIONS, UNFINISHED, Status, Transition
from outbox.storage.dialects import from_db
from outbox.storage.rows import Claim, Failure, Locked
from tests import factories

BEGINNING = datetime.min.replace(tzinfo=UTC)
FOREIGN = "foreign.note"
LEGAL = {(source, each.target) for each in TRANSITIONS for source in each.sources}
SHARDS: dict[str, range | frozenset[int] | None] = {
    "all": None,
    "even": range(0, SHARD_COUNT, 2),
    "odd": range(1, SHARD_COUNT, 2),
    "none": frozenset(),
}

Row = dict[str, Any]

NOW: Any = object()
"""A column that takes the database's clock at the time of the step."""

SECOND_AGO: Any = object()
"""Likewise, less one second."""

_BEFORE_THE_CLOCK = {NOW: timedelta(0), SECOND_AGO: timedelta(seconds=1)}


class RepositoryModel:
    """The rows as they were after the last step, and what the next one may make of them."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.held: set[int] = set()
        """What somebody else has locked."""
        self.rows: dict[int, Row] = {}
        self.changes: dict[int, list[Row]] = {}
        """By row, what the step may have changed: one of these."""
        self.new: list[Row] = []
        self.gone: set[int] = set()
        self.clock = factories.database_now(alias)

    # --- what is there -------------------------------------------------------------------------------------------

    def own_in(self, shards: str, status: Status) -> Iterator[Row]:
        """Return the service's own rows in ``status``."""
        wanted = SHARDS[shards]
        for row in self.rows.values():
            if row["status"] == status and row["event_type"] != FOREIGN and (wanted is None or row["shard"] in wanted):
                yield row

    def in_order(self, rows: Iterable[Row]) -> list[Row]:
        """Return the longest waiting first."""
        return sorted(rows, key=lambda row: (row["next_retry_at"] or BEGINNING, row["id"]))

    def is_due(self, row: Row) -> bool:
        return row["next_retry_at"] is None or row["next_retry_at"] <= self.clock

    def not_held(self, ids: Sequence[int]) -> list[int]:
        """Return what can be had without waiting for somebody's locks."""
        return [row_id for row_id in ids if row_id not in self.held]

    def of_same_keys(self, ids: Sequence[int]) -> list[int]:
        keys = {self.rows[each]["message_key"] for each in ids if each in self.rows}
        return [row["id"] for row in self.rows.values() if row["message_key"] in keys] or list(ids)

    def movable(self, transition: Transition, ids: Sequence[int]) -> list[int]:
        return [each for each in ids if each in self.rows and self.rows[each]["status"] in transition.sources]

    def at_attempt(self, known: Locked, transition: Transition) -> list[int]:
        """Return the row that was locked as ``known``, where it is still at that attempt."""
        return [
            row_id
            for row_id in self.movable(transition, [known.id])
            if (*map(self.rows[row_id].get, ("retry_count", "replay_count", "interruptions")),)
            == (known.retry_count, known.replay_count, known.interruptions)
        ]

    def as_claimed(self, claim: Claim, transition: Transition) -> list[int]:
        """Return the rows of a claim, perhaps an old one, that nobody has put back since."""
        known = {each.id: each for each in claim.rows}
        return [
            row_id
            for row_id in self.movable(transition, list(known))
            if (self.rows[row_id]["next_retry_at"] or BEGINNING) <= from_db(claim.claimed_at)
            and (self.rows[row_id]["put_back_count"], self.rows[row_id]["retry_count"]) == known[row_id].counts
        ]

    def blockers(self, ids: Iterable[int], keys: Iterable[str]) -> dict[str, int]:
        """Return by key which row those with ``ids`` have to wait for."""
        in_hand, wanted = set(ids), set(keys)
        expected: dict[str, int] = {}
        for row_id, row in sorted(self.rows.items()):
            is_before = row_id not in in_hand and row_id < max(in_hand, default=0)
            is_open = row["status"] in UNFINISHED or (row["status"] == Status.DEAD and row["parks_key"])
            if is_before and is_open and row["event_type"] != FOREIGN:
                expected.setdefault(row["message_key"], row_id)
        return {key: row_id for key, row_id in expected.items() if key in wanted}

    # --- what a step is to change --------------------------------------------------------------------------------

    def move(self, transition: Transition, ids: Sequence[int], **columns: Any) -> None:
        for row_id in ids:
            self.changes[row_id] = [{"status": transition.target, "updated_at": NOW, **columns}]
            if transition.target == Status.PENDING:
                self.changes[row_id][0]["put_back_count"] = self.rows[row_id]["put_back_count"] + 1

    def move_to_dead(self, moved: list[int], failure: Failure, parks_key: bool, *, failed_attempts: int = 0) -> None:
        for row_id in moved:
            self.move(
                lifecycle.BURY,
                [row_id],
                retry_count=self.rows[row_id]["retry_count"] + failed_attempts,
                dead_at=NOW,
                next_retry_at=NOW,
                parks_key=parks_key,
                **columns_of(failure),
            )

    def move_to_pending_again(self, moved: Sequence[int]) -> None:
        for row_id in moved:
            self.move(
                lifecycle.REPLAY,
                [row_id],
                retry_count=0,
                replay_count=self.rows[row_id]["replay_count"] + 1,
                interruptions=0,
                next_retry_at=NOW,
                parks_key=False,
                dead_at=None,
                resolved_at=None,
                resolved_by="",
                resolution="",
            )

    def release_behind(self, ids: Sequence[int]) -> None:
        """What is held behind ``ids`` in their keys is due now, unless the first of its key is in a back-off."""
        oldest: dict[str, int] = {}
        for row_id in sorted(set(ids) & set(self.rows)):
            oldest.setdefault(self.rows[row_id]["message_key"], row_id)
        for key, row_id in oldest.items():
            unfinished = [
                row for row in self.rows.values() if row["message_key"] == key and row["status"] in lifecycle.UNFINISHED
            ]
            off = [row for row in unfinished if row["status"] == Status.PENDING and not self.is_due(row)]
            backing_off = [row for row in off if row["retry_count"] or row["interruptions"]]
            if unfinished and min(unfinished, key=itemgetter("id")) in backing_off:
                continue
            for row in off:
                if row not in backing_off and row["id"] > row_id:
                    count = row["put_back_count"] + 1
                    self.changes[row["id"]] = [{"next_retry_at": NOW, "updated_at": NOW, "put_back_count": count}]

    # --- the comparison ------------------------------------------------------------------------------------------

    @contextmanager
    def step(self, way: str) -> Iterator[None]:
        """Do a step, then compare every row with what the step was to make of it."""
        self.changes, self.new, self.gone = {}, [], set()
        with nullcontext() if way == "at once" else transaction.atomic(using=self.alias):
            yield
            if way == "rolled back":
                transaction.set_rollback(True, using=self.alias)
                self.changes, self.new, self.gone = {}, [], set()
        before, earlier = self.rows, self.clock
        self.read_anew()
        assert len(self.rows) == len(before) - len(self.gone) + len(self.new)
        assert set(before) - set(self.rows) == self.gone
        assert all(before[row_id]["status"] == Status.CONSUMED for row_id in self.gone)
        added = sorted(set(self.rows) - set(before))
        assert added[:1] > sorted(before)[-1:] or not added or not before
        for row_id, expected in zip(added, self.new, strict=True):
            assert self.differences(expected, self.rows[row_id], earlier) == {}
        for row_id in set(before) & set(self.rows):
            was, now = before[row_id], self.rows[row_id]
            found = [self.differences(was | each, now, earlier) for each in self.changes.get(row_id, [{}])]
            assert {} in found, f"row {row_id}: {found}"
            assert (was["status"], now["status"]) in LEGAL or was == now

    def differences(self, expected: Row, found: Row, earlier: datetime) -> Row:
        """Return the columns that are not as expected, with both values."""

        def fits(value: Any, actual: Any) -> bool:
            before = _BEFORE_THE_CLOCK.get(value)
            if before is None:
                return bool(actual == value)
            return earlier - before <= (actual or BEGINNING) <= self.clock - before

        return {name: (value, found[name]) for name, value in expected.items() if not fits(value, found[name])}

    def read_anew(self) -> None:
        self.rows = {row["id"]: row for row in AgentOutboxMessage.objects.using(self.alias).order_by("id").values()}
        self.clock = factories.database_now(self.alias)


def lies_behind(row: Row, mark: tuple[Any, int]) -> bool:
    """Say whether a claim that goes on behind ``mark`` comes past ``row``."""
    return row["next_retry_at"] is not None and (row["next_retry_at"], row["id"]) > (from_db(mark[0]), mark[1])


def columns_of(failure: Failure) -> Row:
    return {"last_error": failure.reason, "error_class": failure.error_class, "traceback": failure.traceback}
