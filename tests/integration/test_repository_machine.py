"""The repository under any sequence of steps, by anybody, with knowledge of any age: compared with a model row by row.

After each step the whole table is read. What the step was to change has changed, to what it was to be; every other
column of every other row is as it was. So a step that is rolled back, comes too late, or meets a row that somebody else
has locked is checked for what it leaves alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connections, transaction
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent_events.agent.models import AgentOutboxMessage
from outbox import lifecycle
from outbox.fields import SHARD_COUNT
from outbox.lifecycle import TRANSITIONS, UNFINISHED, Status, Transition
from outbox.rows import Claim, Failure, Locked, NewRow
from outbox.sql import from_db
from tests import factories
from tests.properties import bounded
from tests.repositories import UNLIMITED, stale
from tests.toys import NOTE, PARKED
from tests.transactions import held_elsewhere

HOUR = timedelta(hours=1)
BEGINNING = datetime.min.replace(tzinfo=UTC)
OURS = (NOTE, PARKED)
FOREIGN = "foreign.note"
KEYS = ("k", "K")
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

hours = st.sampled_from([-30, -3, 2, 5]).map(lambda number: number * HOUR)
"""Never about now: what is due does not depend on how fast a test runs."""
ways = st.sampled_from(["at once", "at once", "in a transaction", "rolled back"])
shard_sets = st.sampled_from(["all", "all", "all", *SHARDS])
limits = st.integers(1, 5)
payloads = st.sampled_from([b"{}", b'{"payload": {"n": 1}}', '{"payload": "длинный"}'.encode(), b"no envelope"])


class RepositoryMachine(RuleBasedStateMachine):
    """One table, whoever works on it, and what it should hold."""

    ids = Bundle("ids")
    claims = Bundle("claims")
    locks = Bundle("locks")
    some_ids = st.lists(ids, min_size=1, max_size=4, unique=True)

    def __init__(self, alias: str) -> None:
        super().__init__()
        self.alias = alias
        self.repository = factories.repository(foreign_types=(FOREIGN,))
        self.can_lock_rows = connections[alias].vendor != "sqlite"
        self.held: set[int] = set()
        self.holder = ExitStack()
        self.numbers = itertools.count()
        self.rows: dict[int, Row] = {}
        self.changes: dict[int, list[Row]] = {}
        """By row, what the step may have changed: one of these."""
        self.new: list[Row] = []
        self.gone: set[int] = set()
        AgentOutboxMessage.objects.using(alias).all().delete()
        self.clock = factories.database_now(alias)

    def teardown(self) -> None:
        self.holder.close()

    # --- publishers ----------------------------------------------------------------------------------------------

    @initialize(target=ids, keys=st.lists(st.sampled_from(KEYS), min_size=2, max_size=6))
    def begin_with_some_rows(self, keys: list[str]) -> Any:
        ids = [factories.row(self.alias, key=key, event_type=NOTE) for key in keys]
        self.read_anew()
        return multiple(*ids)

    @initialize(target=claims)
    def begin_with_a_claim_of_nothing(self) -> Claim:
        return Claim([])

    @rule(target=ids, count=st.integers(1, 3), key=st.sampled_from(KEYS), event_type=st.sampled_from(OURS), way=ways)
    def insert(self, count: int, key: str, event_type: str, way: str) -> Any:
        given = [
            NewRow(event_type, key, b'{"payload": %d}' % next(self.numbers), max_retry=7, traceparent="00-aa-bb-01")
            for _ in range(count)
        ]
        with self.step(way):
            assert self.repository.insert(given) == count
            self.new = [
                {
                    "event_type": event_type,
                    "service_name": "agent",
                    "topic": "smartflow.agent.outbox",
                    "message_key": key,
                    "payload": row.payload.decode(),
                    "status": Status.PENDING,
                    "retry_count": 0,
                    "max_retry": 7,
                    "traceparent": "00-aa-bb-01",
                    "parks_key": False,
                    **dict.fromkeys(["next_retry_at", "created_at", "updated_at"], NOW),
                    **dict.fromkeys(["published_at", "consumed_at", "dead_at", "resolved_at", "last_error"]),
                }
                for row in given
            ]
        return multiple(*list(self.rows)[-count:] if way != "rolled back" else ())

    @rule(
        target=ids,
        key=st.sampled_from(KEYS),
        event_type=st.sampled_from([*OURS, FOREIGN]),
        status=st.sampled_from(UNFINISHED),
        due_in=st.none() | hours,
    )
    def other_software_inserts(self, key: str, event_type: str, status: Status, due_in: timedelta | None) -> int:
        due_at = None if due_in is None else self.clock + due_in
        if status == Status.PUBLISHED:
            due_at = due_at or self.clock + HOUR
        row_id = factories.row(self.alias, key=key, event_type=event_type, status=status, next_retry_at=due_at)
        self.read_anew()
        return row_id

    # --- relays --------------------------------------------------------------------------------------------------

    @rule(
        target=claims,
        shards=shard_sets,
        limit=limits,
        after=st.none() | st.none() | claims,
        max_length=st.sampled_from([2, 20, UNLIMITED]),
    )
    def claim(self, shards: str, limit: int, after: Claim | None, max_length: int) -> Claim:
        mark = after.last if after is not None else None
        due = self.in_order(
            row
            for row in self.own_in(shards, Status.PENDING)
            if self.is_due(row) and (not mark or lies_behind(row, mark))
        )[:limit]

        found = self.repository.claim(shards=SHARDS[shards], limit=limit, max_length=max_length, after=mark)

        assert [each.id for each in found.rows] == sorted(row["id"] for row in due)
        for each in found.rows:
            row = self.rows[each.id]
            fits = len(row["payload"].encode()) <= max_length
            assert each.payload == (row["payload"] if fits else None)
            assert (each.event_type, each.message_key) == (row["event_type"], row["message_key"])
            assert self.repository.payload_of(each.id) == row["payload"]
        if due and all(row["next_retry_at"] for row in due):
            assert found.last is not None
            assert (from_db(found.last[0]), found.last[1]) == (due[-1]["next_retry_at"], due[-1]["id"])
        else:
            assert found.last is None
        with self.step("at once"):
            pass
        if found.rows:
            assert from_db(found.claimed_at) <= self.clock
        return found

    @rule(claim=claims, way=ways)
    def mark_published(self, claim: Claim, way: str) -> None:
        if not claim.rows:
            return
        ids = [each.id for each in claim.rows]
        claimed_at = from_db(claim.claimed_at)
        as_claimed = [
            row_id
            for row_id in self.movable(lifecycle.MARK_PUBLISHED, ids)
            if (self.rows[row_id]["next_retry_at"] or BEGINNING) <= claimed_at
        ]
        free = [row_id for row_id in as_claimed if row_id not in self.held]
        with self.step(way):
            marked = self.repository.mark_published(ids, claimed_at=claim.claimed_at, redeliver_after=HOUR)
            self.move(lifecycle.MARK_PUBLISHED, free, published_at=NOW, next_retry_at=claimed_at + HOUR)
        assert marked.count == len(free)
        assert sorted(marked.held) == sorted(set(as_claimed) - set(free))

    @rule(target=claims, limit=limits, put_back=st.integers(0, 2), pause=hours, way=ways)
    def claim_and_mark(self, limit: int, put_back: int, pause: timedelta, way: str) -> Claim:
        """Do what a relay does, and a consumer that is faster than its mark; the claim may be used again later."""
        claim = self.claim(shards="all", limit=limit, after=None, max_length=UNLIMITED)
        self.wait(given_ids=[row.id for row in claim.rows][:put_back], pause=pause, way="at once")
        self.mark_published(claim=claim, way=way)
        return claim

    @rule(shards=shard_sets, before=hours, limit=limits, way=ways)
    def redeliver(self, shards: str, before: timedelta, limit: int, way: str) -> None:
        moment = self.clock + before
        stuck = self.in_order(
            row
            for row in self.own_in(shards, Status.PUBLISHED)
            if self.is_due(row) and (row["published_at"] or row["updated_at"]) < moment
        )[:limit]
        free = [row["id"] for row in stuck if row["id"] not in self.held]
        with self.step(way):
            count = self.repository.redeliver(shards=SHARDS[shards], published_before=moment, limit=limit)
            self.move(lifecycle.REDELIVER, free, next_retry_at=NOW)
        assert count == len(free)

    @rule(shards=shard_sets, limit=limits)
    def look_at_published(self, shards: str, limit: int) -> None:
        waiting = self.in_order(self.own_in(shards, Status.PUBLISHED))[:limit]
        expected = sorted((row["id"], row["event_type"], row["message_key"]) for row in waiting)
        assert self.repository.published(shards=SHARDS[shards], limit=limit) == expected

    # --- consumers -----------------------------------------------------------------------------------------------

    @rule(target=locks, given_ids=some_ids, max_length=st.sampled_from([2, 20, UNLIMITED]))
    def lock(self, given_ids: list[int], max_length: int) -> Any:
        ids = self.not_held(given_ids)
        with transaction.atomic(using=self.alias):
            found = self.repository.lock(ids, max_length=max_length)
        assert [each.id for each in found] == sorted(set(ids) & set(self.rows))
        for each in found:
            row = self.rows[each.id]
            is_unfinished = row["status"] in UNFINISHED
            length = len(row["payload"].encode()) if is_unfinished else 0
            assert each == Locked(
                **{name: row[name] for name in ("id", "event_type", "message_key", "status", "retry_count")},
                max_retry=row["max_retry"],
                traceparent=row["traceparent"],
                is_due=self.is_due(row),
                payload=row["payload"] if is_unfinished and length <= max_length else None,
                payload_length=length,
            )
        self.check_blockers(found)
        return multiple(*found)

    @rule(given_ids=some_ids, way=ways)
    def mark_consumed(self, given_ids: list[int], way: str) -> None:
        ids = self.not_held(given_ids)
        moved = self.movable(lifecycle.CONSUME, ids)
        with self.step(way):
            assert self.repository.mark_consumed(ids) == len(moved)
            for row_id in moved:
                published_at = self.rows[row_id]["published_at"] or NOW
                self.move(lifecycle.CONSUME, [row_id], consumed_at=NOW, published_at=published_at)

    @rule(given_ids=some_ids, pause=hours, way=ways)
    def wait(self, given_ids: list[int], pause: timedelta, way: str) -> None:
        ids = self.not_held(given_ids)
        moved, until = self.movable(lifecycle.WAIT, ids), self.clock + pause
        with self.step(way):
            assert self.repository.wait(ids, until=until) == len(moved)
            self.move(lifecycle.WAIT, moved, next_retry_at=until)

    @rule(known=locks, pause=hours, way=ways)
    def retry(self, known: Locked, pause: timedelta, way: str) -> None:
        if known.id in self.held:
            return
        failure = Failure(f"error {next(self.numbers)}", "ValueError", "Traceback")
        moved = [
            row_id
            for row_id in self.movable(lifecycle.RETRY, [known.id])
            if self.rows[row_id]["retry_count"] == known.retry_count
        ]
        with self.step(way):
            assert self.repository.retry(known, due_at=self.clock + pause, failure=failure) == len(moved)
            self.move(
                lifecycle.RETRY,
                moved,
                retry_count=known.retry_count + 1,
                next_retry_at=self.clock + pause,
                **columns_of(failure),
            )

    @rule(row_id=ids, parks_key=st.booleans(), way=ways)
    def bury(self, row_id: int, parks_key: bool, way: str) -> None:
        if row_id in self.held:
            return
        moved = self.movable(lifecycle.BURY, [row_id])
        failure = Failure(f"dead {next(self.numbers)}", "Discard")
        with self.step(way):
            assert self.repository.bury(row_id, failure=failure, parks_key=parks_key) == len(moved)
            self.move_to_dead(moved, failure, parks_key)

    @rule(known=locks, parks_key=st.booleans(), way=ways)
    def bury_failed(self, known: Locked, parks_key: bool, way: str) -> None:
        """Note the last attempt of a row as it was locked once, perhaps long ago."""
        if known.id in self.held:
            return
        moved = [
            row_id
            for row_id in self.movable(lifecycle.BURY, [known.id])
            if self.rows[row_id]["retry_count"] == known.retry_count
        ]
        failure = Failure(f"dead {next(self.numbers)}", "Discard")
        with self.step(way):
            assert self.repository.bury_failed(known, failure=failure, parks_key=parks_key) == len(moved)
            self.move_to_dead(moved, failure, parks_key, failed_attempts=1)

    @rule(claim=claims, parks_key=st.booleans(), way=ways)
    def bury_refused(self, claim: Claim, parks_key: bool, way: str) -> None:
        """Bury the first row of a claim, perhaps an old one, as a relay does that is told no."""
        if not claim.rows:
            return
        row_id = claim.rows[0].id
        moved = [
            each
            for each in self.not_held(self.movable(lifecycle.BURY, [row_id]))
            if (self.rows[each]["next_retry_at"] or BEGINNING) <= from_db(claim.claimed_at)
        ]
        failure = Failure(f"dead {next(self.numbers)}", "RecordRefused")
        with self.step(way):
            buried = self.repository.bury_refused(
                row_id, failure=failure, parks_key=parks_key, claimed_at=claim.claimed_at
            )
            assert buried == len(moved)
            self.move_to_dead(moved, failure, parks_key)

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

    @rule(key=st.sampled_from(KEYS), parks_key=st.booleans(), pause=hours, way=ways)
    def bury_and_put_back_the_rest(self, key: str, parks_key: bool, pause: timedelta, way: str) -> None:
        """Do what a consumer does where the oldest event of a key cannot be read."""
        unfinished = [row["id"] for row in self.rows.values() if row["message_key"] == key]
        unfinished = self.not_held(self.movable(lifecycle.BURY, unfinished))
        if unfinished:
            self.bury(row_id=unfinished[0], parks_key=parks_key, way=way)
            self.wait(given_ids=unfinished[1:], pause=pause, way=way)

    # --- people --------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.held)
    @rule(chosen=some_ids, with_their_keys=st.booleans(), way=ways)
    def replay(self, chosen: list[int], with_their_keys: bool, way: str) -> None:
        given_ids = self.of_same_keys(chosen) if with_their_keys else chosen
        moved = self.movable(lifecycle.REPLAY, given_ids)
        with self.step(way):
            assert self.repository.replay(given_ids) == len(moved)
            self.move(
                lifecycle.REPLAY,
                moved,
                retry_count=0,
                next_retry_at=NOW,
                parks_key=False,
                dead_at=None,
                resolved_at=None,
                resolved_by="",
                resolution="",
            )
            self.wake_successors(given_ids, moved)

    @precondition(lambda self: not self.held)
    @rule(chosen=some_ids, with_their_keys=st.booleans(), way=ways)
    def give_up(self, chosen: list[int], with_their_keys: bool, way: str) -> None:
        given_ids = self.of_same_keys(chosen) if with_their_keys else chosen
        moved = [
            row_id for row_id in self.movable(lifecycle.GIVE_UP, given_ids) if self.rows[row_id]["resolved_at"] is None
        ]
        with self.step(way):
            assert self.repository.give_up(given_ids, by="ann", reason="not needed") == len(moved)
            self.move(
                lifecycle.GIVE_UP,
                moved,
                resolved_at=NOW,
                resolved_by="ann",
                resolution="not needed",
                parks_key=False,
            )
            self.wake_successors(given_ids, moved)

    @rule(row_id=ids, payload=payloads, way=ways)
    def edit(self, row_id: int, payload: bytes, way: str) -> None:
        if row_id in self.held:
            return
        moved = self.movable(lifecycle.EDIT, [row_id])
        with self.step(way):
            assert self.repository.edit(row_id, payload=payload) == len(moved)
            self.move(lifecycle.EDIT, moved, payload=payload.decode())

    @rule(before=hours, after_id=st.just(0) | ids, limit=st.integers(1, 8), way=ways)
    def prune(self, before: timedelta, after_id: int, limit: int, way: str) -> None:
        moment = self.clock + before
        window = [self.rows[row_id] for row_id in sorted(self.rows) if row_id > after_id][:limit]
        done = [
            row["id"]
            for row in window
            if row["status"] == Status.CONSUMED and row["consumed_at"] < moment and row["id"] not in self.held
        ]
        is_last = len(window) < limit or all(row["created_at"] >= moment for row in window)
        with self.step(way):
            pruned = self.repository.prune(consumed_before=moment, after_id=after_id, limit=limit)
            self.gone = set(done)
        assert pruned.deleted == len(done)
        assert pruned.last_id == (None if is_last else window[-1]["id"])

    # --- what else happens -----------------------------------------------------------------------------------------

    @rule(chosen=some_ids, with_their_keys=st.booleans())
    def time_passes(self, chosen: list[int], with_their_keys: bool) -> None:
        """Let rows look as if all that happened to them had happened some hours earlier."""
        given_ids = self.of_same_keys(chosen) if with_their_keys else chosen
        for row_id in set(self.not_held(given_ids)) & set(self.rows):
            moments = {
                name: value - 4 * HOUR for name, value in self.rows[row_id].items() if isinstance(value, datetime)
            }
            factories.change(self.alias, row_id, **moments)
        self.read_anew()

    @precondition(lambda self: self.can_lock_rows and not self.held)
    @rule(given_ids=some_ids)
    def somebody_takes_locks(self, given_ids: list[int]) -> None:
        self.held = set(given_ids)
        self.holder.enter_context(
            held_elsewhere(self.alias, lambda: self.repository.lock(given_ids, max_length=UNLIMITED))
        )

    @precondition(lambda self: self.held)
    @rule()
    def locks_are_let_go(self) -> None:
        self.held = set()
        self.holder.close()

    # --- the model -----------------------------------------------------------------------------------------------

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

    def move(self, transition: Transition, ids: Sequence[int], **columns: Any) -> None:
        for row_id in ids:
            self.changes[row_id] = [{"status": transition.target, "updated_at": NOW, **columns}]

    def wake_successors(self, ids: Sequence[int], moved: Sequence[int]) -> None:
        """What waits behind a row that was decided on is due now; what stands behind any of ``ids`` may be."""
        keys = {self.rows[each]["message_key"] for each in ids if each in self.rows}
        for row in self.rows.values():
            is_waiting = row["status"] == Status.PENDING and row["retry_count"] == 0 and not self.is_due(row)
            if is_waiting and row["message_key"] in keys and row["id"] > min(ids):
                has_to = any(
                    each < row["id"] and self.rows[each]["message_key"] == row["message_key"] for each in moved
                )
                self.changes[row["id"]] = [{"next_retry_at": NOW, "updated_at": NOW}, *([] if has_to else [{}])]

    def check_blockers(self, found: Sequence[Locked]) -> None:
        blockers = self.repository.blockers(found)
        in_hand = {each.id for each in found}
        expected: dict[str, int] = {}
        for row_id, row in sorted(self.rows.items()):
            is_before = row_id not in in_hand and row_id < max(in_hand, default=0)
            is_open = row["status"] in UNFINISHED or (row["status"] == Status.DEAD and row["parks_key"])
            if is_before and is_open and row["event_type"] != FOREIGN:
                expected.setdefault(row["message_key"], row_id)
        keys = {each.message_key for each in found}
        assert {key: each.id for key, each in blockers.items()} == {
            key: row_id for key, row_id in expected.items() if key in keys
        }
        for each in blockers.values():
            row = self.rows[each.id]
            assert each.due_at == (row["next_retry_at"] if row["status"] == Status.PENDING else None)
            assert each.unchanged_for >= self.clock - row["updated_at"] >= timedelta(0)

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
        return {
            name: (value, found[name])
            for name, value in expected.items()
            if not (earlier <= (found[name] or BEGINNING) <= self.clock if value is NOW else found[name] == value)
        }

    @invariant()
    def newest_of_each_key_knows_whom_it_waits_for(self) -> None:
        newest = {row["message_key"]: row["id"] for row in self.rows.values()}
        self.check_blockers([stale(row_id, message_key=key) for key, row_id in newest.items()])

    def read_anew(self) -> None:
        self.rows = {row["id"]: row for row in AgentOutboxMessage.objects.using(self.alias).order_by("id").values()}
        self.clock = factories.database_now(self.alias)


def lies_behind(row: Row, mark: tuple[Any, int]) -> bool:
    """Say whether a claim that goes on behind ``mark`` comes past ``row``."""
    return row["next_retry_at"] is not None and (row["next_retry_at"], row["id"]) > (from_db(mark[0]), mark[1])


def columns_of(failure: Failure) -> Row:
    return {"last_error": failure.reason, "error_class": failure.error_class, "traceback": failure.traceback}


@pytest.fixture
def impatient(alias: str) -> Iterator[None]:
    """Fail a statement that waits for somebody's locks: none of those that are tried here may."""
    connection = connections[alias]
    limit = {"mysql": "SET SESSION innodb_lock_wait_timeout = 2", "postgresql": "SET lock_timeout = '2s'"}
    if connection.vendor in limit:
        with connection.cursor() as cursor:
            cursor.execute(limit[connection.vendor])
    yield
    connection.close()


def test_any_steps_in_any_order_do_what_they_say_and_nothing_else(alias: str, impatient: None) -> None:
    examples = {"default": 30, "mariadb": 20, "postgres": 10}[alias]
    run_state_machine_as_test(lambda: RepositoryMachine(alias), settings=bounded(examples, steps=50))  # type: ignore[arg-type]
