"""The repository under any sequence of steps, by anybody, with knowledge of any age: compared with a model row by row.

After each step the whole table is read. What the step was to change has changed, to what it was to be; every other
column of every other row is as it was. So a step that is rolled back, comes too late, or meets a row that somebody else
has locked is checked for what it leaves alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

import msgspec
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
from outbox.lifecycle import UNFINISHED, Status
from outbox.storage.dialects import from_db
from outbox.storage.rows import Claim, Failure, Identity, Locked, NewRow
from tests import factories
from tests.integration.repository_model import (
    FOREIGN,
    NOW,
    SECOND_AGO,
    SHARDS,
    RepositoryModel,
    columns_of,
    lies_behind,
)
from tests.properties import bounded
from tests.repositories import UNLIMITED, stale
from tests.toys import NOTE, PARKED
from tests.transactions import held_elsewhere

HOUR = timedelta(hours=1)
OURS = (NOTE, PARKED)
KEYS = ("k", "K")
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
        self.holder = ExitStack()
        self.numbers = itertools.count()
        AgentOutboxMessage.objects.using(alias).all().delete()
        self.model = RepositoryModel(alias)

    def teardown(self) -> None:
        self.holder.close()

    # --- publishers ----------------------------------------------------------------------------------------------

    @initialize(target=ids, keys=st.lists(st.sampled_from(KEYS), min_size=2, max_size=6))
    def begin_with_some_rows(self, keys: list[str]) -> Any:
        ids = [factories.row(self.alias, key=key, event_type=NOTE) for key in keys]
        self.model.read_anew()
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
        with self.model.step(way):
            assert self.repository.insert(given) == count
            self.model.new = [
                {
                    "event_type": event_type,
                    "service_name": "agent",
                    "topic": "smartflow.agent.outbox",
                    "message_key": key,
                    "payload": row.payload.decode(),
                    "status": Status.PENDING,
                    "retry_count": 0,
                    "replay_count": 0,
                    "interruptions": 0,
                    "max_retry": 7,
                    "traceparent": "00-aa-bb-01",
                    "parks_key": False,
                    **dict.fromkeys(["next_retry_at", "created_at", "updated_at"], NOW),
                    **dict.fromkeys(["published_at", "consumed_at", "dead_at", "resolved_at", "last_error"]),
                }
                for row in given
            ]
        return multiple(*list(self.model.rows)[-count:] if way != "rolled back" else ())

    @rule(
        target=ids,
        key=st.sampled_from(KEYS),
        event_type=st.sampled_from([*OURS, FOREIGN]),
        status=st.sampled_from(UNFINISHED),
        due_in=st.none() | hours,
    )
    def other_software_inserts(self, key: str, event_type: str, status: Status, due_in: timedelta | None) -> int:
        due_at = None if due_in is None else self.model.clock + due_in
        if status == Status.PUBLISHED:
            due_at = due_at or self.model.clock + HOUR
        row_id = factories.row(self.alias, key=key, event_type=event_type, status=status, next_retry_at=due_at)
        self.model.read_anew()
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
        due = self.model.in_order(
            row
            for row in self.model.own_in(shards, Status.PENDING)
            if self.model.is_due(row) and (not mark or lies_behind(row, mark))
        )[:limit]

        found = self.repository.claim(shards=SHARDS[shards], limit=limit, max_length=max_length, after=mark)

        assert [each.id for each in found.rows] == sorted(row["id"] for row in due)
        for each in found.rows:
            row = self.model.rows[each.id]
            fits = len(row["payload"].encode()) <= max_length
            assert each.payload == (row["payload"].encode() if fits else None)
            assert (each.event_type, each.message_key) == (row["event_type"], row["message_key"])
            assert self.repository.payload_of(each.id) == row["payload"].encode()
        if due and all(row["next_retry_at"] for row in due):
            assert found.last is not None
            assert (from_db(found.last[0]), found.last[1]) == (due[-1]["next_retry_at"], due[-1]["id"])
        else:
            assert found.last is None
        with self.model.step("at once"):
            pass
        if found.rows:
            assert from_db(found.claimed_at) <= self.model.clock
        return found

    @rule(claim=claims, way=ways)
    def mark_published(self, claim: Claim, way: str) -> None:
        if not claim.rows:
            return
        ids = [each.id for each in claim.rows]
        claimed_at = from_db(claim.claimed_at)
        as_claimed = self.model.as_claimed(claim, lifecycle.MARK_PUBLISHED)
        free = [row_id for row_id in as_claimed if row_id not in self.model.held]
        with self.model.step(way):
            marked = self.repository.mark_published(
                ids, claimed_at=claim.claimed_at, redeliver_after=HOUR, counts=claim.counts
            )
            self.model.move(lifecycle.MARK_PUBLISHED, free, published_at=NOW, next_retry_at=claimed_at + HOUR)
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
        moment = self.model.clock + before
        stuck = self.model.in_order(
            row
            for row in self.model.own_in(shards, Status.PUBLISHED)
            if self.model.is_due(row) and (row["published_at"] or row["updated_at"]) < moment
        )[:limit]
        free = [row["id"] for row in stuck if row["id"] not in self.model.held]
        with self.model.step(way):
            count = self.repository.redeliver(shards=SHARDS[shards], published_before=moment, limit=limit)
            self.model.move(lifecycle.REDELIVER, free, next_retry_at=SECOND_AGO)
        assert count == len(free)

    @rule(shards=shard_sets, limit=limits)
    def look_at_published(self, shards: str, limit: int) -> None:
        waiting = self.model.in_order(self.model.own_in(shards, Status.PUBLISHED))[:limit]
        expected = sorted((row["id"], row["event_type"], row["message_key"], row["shard"]) for row in waiting)
        assert self.repository.published(shards=SHARDS[shards], limit=limit) == expected

    # --- consumers -----------------------------------------------------------------------------------------------

    @rule(target=locks, given_ids=some_ids, max_length=st.sampled_from([2, 20, UNLIMITED]))
    def lock(self, given_ids: list[int], max_length: int) -> Any:
        """Lock what can be had, without waiting for the rest; that is there all the same for a plain read."""
        with transaction.atomic(using=self.alias):
            found = self.repository.lock(given_ids, max_length=max_length)
            existing = self.repository.existing(given_ids)
        there = sorted(set(given_ids) & set(self.model.rows))
        assert [each.id for each in found] == self.model.not_held(there)
        assert existing == {
            row_id: Identity(*(self.model.rows[row_id][name] for name in ("event_type", "message_key", "event_id")))
            for row_id in there
        }
        for each in found:
            row = self.model.rows[each.id]
            is_unfinished = row["status"] in UNFINISHED
            length = len(row["payload"].encode()) if is_unfinished else 0
            assert each == Locked(
                **{name: row[name] for name in ("id", "event_type", "message_key", "status")},
                **{name: row[name] for name in ("retry_count", "replay_count", "max_retry", "interruptions")},
                traceparent=row["traceparent"],
                is_due=self.model.is_due(row),
                payload=row["payload"].encode() if is_unfinished and length <= max_length else None,
                payload_length=length,
            )
        self.check_blockers(found)
        return multiple(*found)

    @rule(given_ids=some_ids, way=ways)
    def mark_consumed(self, given_ids: list[int], way: str) -> None:
        ids = self.model.not_held(given_ids)
        moved = self.model.movable(lifecycle.CONSUME, ids)
        with self.model.step(way):
            assert self.repository.mark_consumed(ids) == len(moved)
            for row_id in moved:
                published_at = self.model.rows[row_id]["published_at"] or NOW
                self.model.move(
                    lifecycle.CONSUME, [row_id], consumed_at=NOW, published_at=published_at, interruptions=0
                )

    @rule(given_ids=some_ids, pause=hours, way=ways)
    def wait(self, given_ids: list[int], pause: timedelta, way: str) -> None:
        ids = self.model.not_held(given_ids)
        moved, until = self.model.movable(lifecycle.WAIT, ids), self.model.clock + pause
        with self.model.step(way):
            assert self.repository.wait(ids, until=until) == len(moved)
            self.model.move(lifecycle.WAIT, moved, next_retry_at=until, interruptions=0)

    @rule(known=locks, pause=hours, way=ways)
    def retry(self, known: Locked, pause: timedelta, way: str) -> None:
        if known.id in self.model.held:
            return
        failure = Failure(f"error {next(self.numbers)}", "ValueError", "Traceback")
        moved = self.model.at_attempt(known, lifecycle.RETRY)
        with self.model.step(way):
            assert self.repository.retry(known, due_at=self.model.clock + pause, failure=failure) == len(moved)
            self.model.move(
                lifecycle.RETRY,
                moved,
                retry_count=known.retry_count + 1,
                interruptions=0,
                next_retry_at=self.model.clock + pause,
                **columns_of(failure),
            )

    @rule(known=locks, pause=hours, is_announced=st.booleans(), way=ways)
    def interrupt(self, known: Locked, pause: timedelta, is_announced: bool, way: str) -> None:
        """Count an interruption of a row as it was locked once: before its try, or after it with the reason."""
        if known.id in self.model.held:
            return
        failure = None if is_announced else Failure(f"lost {next(self.numbers)}", "ConnectionLostError")
        moved = self.model.at_attempt(known, lifecycle.INTERRUPT)
        with self.model.step(way):
            due_at = self.model.clock + pause
            assert self.repository.interrupt(known, due_at=due_at, failure=failure) == len(moved)
            self.model.move(
                lifecycle.INTERRUPT,
                moved,
                interruptions=known.interruptions + 1,
                next_retry_at=due_at,
                **({} if failure is None else columns_of(failure)),
            )

    @rule(known=locks, is_of_its_announcement=st.booleans(), way=ways)
    def forget_interruptions(self, known: Locked, is_of_its_announcement: bool, way: str) -> None:
        """Take back what was announced of a row, by what is known of it then or by what was known before."""
        if is_of_its_announcement:
            known = msgspec.structs.replace(known, interruptions=known.interruptions + 1)
        meant = self.model.at_attempt(known, lifecycle.WAIT)
        moved = self.model.not_held(meant)
        with self.model.step(way):
            assert self.repository.forget_interruptions(known) == (moved == meant)
            self.model.move(lifecycle.WAIT, moved, interruptions=0, next_retry_at=NOW)

    @rule(row_id=ids, parks_key=st.booleans(), way=ways)
    def bury(self, row_id: int, parks_key: bool, way: str) -> None:
        if row_id in self.model.held:
            return
        moved = self.model.movable(lifecycle.BURY, [row_id])
        failure = Failure(f"dead {next(self.numbers)}", "Discard")
        with self.model.step(way):
            assert self.repository.bury(row_id, failure=failure, parks_key=parks_key) == len(moved)
            self.model.move_to_dead(moved, failure, parks_key)

    @rule(known=locks, parks_key=st.booleans(), way=ways)
    def bury_failed(self, known: Locked, parks_key: bool, way: str) -> None:
        """Note the last attempt of a row as it was locked once, perhaps long ago."""
        if known.id in self.model.held:
            return
        moved = self.model.at_attempt(known, lifecycle.BURY)
        failure = Failure(f"dead {next(self.numbers)}", "Discard")
        with self.model.step(way):
            assert self.repository.bury_failed(known, failure=failure, parks_key=parks_key) == len(moved)
            self.model.move_to_dead(moved, failure, parks_key, failed_attempts=1)

    @rule(claim=claims, parks_key=st.booleans(), way=ways)
    def bury_refused(self, claim: Claim, parks_key: bool, way: str) -> None:
        """Bury the first row of a claim, perhaps an old one, as a relay does that is told no."""
        if not claim.rows:
            return
        row_id = claim.rows[0].id
        as_claimed = self.model.as_claimed(claim, lifecycle.BURY)
        moved = [each for each in self.model.not_held([row_id]) if each in as_claimed]
        failure = Failure(f"dead {next(self.numbers)}", "RecordRefused")
        with self.model.step(way):
            buried = self.repository.bury_refused(
                row_id, failure=failure, parks_key=parks_key, claimed_at=claim.claimed_at, counts=claim.counts
            )
            assert buried == len(moved)
            self.model.move_to_dead(moved, failure, parks_key)

    @rule(key=st.sampled_from(KEYS), parks_key=st.booleans(), pause=hours, way=ways)
    def bury_and_put_back_the_rest(self, key: str, parks_key: bool, pause: timedelta, way: str) -> None:
        """Do what a consumer does where the oldest event of a key cannot be read."""
        unfinished = [row["id"] for row in self.model.rows.values() if row["message_key"] == key]
        unfinished = self.model.not_held(self.model.movable(lifecycle.BURY, unfinished))
        if unfinished:
            self.bury(row_id=unfinished[0], parks_key=parks_key, way=way)
            self.wait(given_ids=unfinished[1:], pause=pause, way=way)

    # --- people --------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.model.held)
    @rule(chosen=some_ids, with_their_keys=st.booleans(), way=ways)
    def replay(self, chosen: list[int], with_their_keys: bool, way: str) -> None:
        given_ids = self.model.of_same_keys(chosen) if with_their_keys else chosen
        moved = self.model.movable(lifecycle.REPLAY, given_ids)
        with self.model.step(way):
            assert self.repository.replay(given_ids) == len(moved)
            self.model.move_to_pending_again(moved)

    @precondition(lambda self: not self.model.held)
    @rule(chosen=some_ids, with_their_keys=st.booleans(), way=ways)
    def give_up(self, chosen: list[int], with_their_keys: bool, way: str) -> None:
        given_ids = self.model.of_same_keys(chosen) if with_their_keys else chosen
        moved = [
            row_id
            for row_id in self.model.movable(lifecycle.GIVE_UP, given_ids)
            if self.model.rows[row_id]["resolved_at"] is None
        ]
        with self.model.step(way):
            assert self.repository.give_up(given_ids, by="ann", reason="not needed") == len(moved)
            self.model.move(
                lifecycle.GIVE_UP,
                moved,
                resolved_at=NOW,
                resolved_by="ann",
                resolution="not needed",
                parks_key=False,
            )
            self.model.release_behind(given_ids if moved else [])

    @rule(row_id=ids, payload=payloads, way=ways)
    def edit(self, row_id: int, payload: bytes, way: str) -> None:
        if row_id in self.model.held:
            return
        moved = self.model.movable(lifecycle.EDIT, [row_id])
        with self.model.step(way):
            assert self.repository.edit(row_id, payload=payload) == len(moved)
            self.model.move(lifecycle.EDIT, moved, payload=payload.decode())

    @rule(before=hours, after_id=st.just(0) | ids, limit=st.integers(1, 8), way=ways)
    def prune(self, before: timedelta, after_id: int, limit: int, way: str) -> None:
        moment = self.model.clock + before
        window = [self.model.rows[row_id] for row_id in sorted(self.model.rows) if row_id > after_id][:limit]
        done = [
            row["id"]
            for row in window
            if row["status"] == Status.CONSUMED and row["consumed_at"] < moment and row["id"] not in self.model.held
        ]
        is_last = len(window) < limit or all(row["created_at"] >= moment for row in window)
        with self.model.step(way):
            pruned = self.repository.prune(consumed_before=moment, after_id=after_id, limit=limit)
            self.model.gone = set(done)
        assert pruned.deleted == len(done)
        assert pruned.last_id == (None if is_last else window[-1]["id"])

    # --- what else happens -----------------------------------------------------------------------------------------

    @rule(chosen=some_ids, with_their_keys=st.booleans())
    def time_passes(self, chosen: list[int], with_their_keys: bool) -> None:
        """Let rows look as if all that happened to them had happened some hours earlier."""
        given_ids = self.model.of_same_keys(chosen) if with_their_keys else chosen
        for row_id in set(self.model.not_held(given_ids)) & set(self.model.rows):
            moments = {
                name: value - 4 * HOUR for name, value in self.model.rows[row_id].items() if isinstance(value, datetime)
            }
            factories.change(self.alias, row_id, **moments)
        self.model.read_anew()

    @precondition(lambda self: self.can_lock_rows and not self.model.held)
    @rule(given_ids=some_ids)
    def somebody_takes_locks(self, given_ids: list[int]) -> None:
        self.model.held = set(given_ids)
        self.holder.enter_context(
            held_elsewhere(self.alias, lambda: self.repository.lock(given_ids, max_length=UNLIMITED))
        )

    @precondition(lambda self: self.model.held)
    @rule()
    def locks_are_let_go(self) -> None:
        self.model.held = set()
        self.holder.close()

    def check_blockers(self, found: Sequence[Locked]) -> None:
        blockers = self.repository.predecessors(found).blockers
        expected = self.model.blockers([each.id for each in found], [each.message_key for each in found])
        assert {key: each.id for key, each in blockers.items()} == expected
        for each in blockers.values():
            row = self.model.rows[each.id]
            assert each.due_at == (row["next_retry_at"] if row["status"] == Status.PENDING else None)
            assert each.unchanged_for >= self.model.clock - row["updated_at"] >= timedelta(0)

    @invariant()
    def newest_of_each_key_knows_whom_it_waits_for(self) -> None:
        newest = {row["message_key"]: row["id"] for row in self.model.rows.values()}
        self.check_blockers([stale(row_id, message_key=key) for key, row_id in newest.items()])


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
    examples = {"default": 30, "mariadb": 20, "mysql": 20, "postgres": 10}[alias]
    run_state_machine_as_test(lambda: RepositoryMachine(alias), settings=bounded(examples, steps=50))  # type: ignore[arg-type]
