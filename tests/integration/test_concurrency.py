"""Many at once on the same rows, each on a thread and a connection of its own: nothing is lost and nothing done twice.

An error of a lost lock may reach only those who do the work again: consumers, relays and pruning by themselves, and a
person whom the admin asks to. Whoever publishes must never see one.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import DatabaseError, connections, transaction

from agent_events.agent.models import AgentOutboxMessage
from outbox import Delivery, Discard, RetryPolicy
from outbox.admin import operations
from outbox.admin.operations import NotDoneError
from outbox.brokers.memory import MemoryBroker
from outbox.consumer import Consumer
from outbox.envelope import decode_message, encode_envelope
from outbox.fields import SHARD_COUNT
from outbox.leases import ShardLeases
from outbox.lifecycle import BURY, CONSUME, MARK_PUBLISHED, REPLAY, RETRY, UNFINISHED, WAIT, Status, Transition
from outbox.models import RejectedRecord
from outbox.pruning import Pruning
from outbox.relay import Relay
from outbox.rows import Locked, NewRow
from outbox.shutdown import StopFlag
from outbox.sql import Trouble, to_db, trouble_of
from tests import factories
from tests.repositories import FAILURE, UNLIMITED
from tests.threads import together
from tests.toys import HANDLED, NOTE, PARKED, PARKED_BULK, SERVICE, ManualClock, ToyEffect, Toys, effects
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize("database_alias", ["mariadb", "postgres"], indirect=True)

NEVER = StopFlag()
HOUR = timedelta(hours=1)
KEYS = tuple("abcdef")
DEADLINE_S = 60


# --- leases ----------------------------------------------------------------------------------------------------------


@dataclass
class Floor:
    """Where workers are seen at work: two of them on one shard collide."""

    at_work: dict[int, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def working(self, worker: str, shards: frozenset[int]) -> Iterator[None]:
        with self.lock:
            taken = {shard: self.at_work[shard] for shard in shards if shard in self.at_work}
            assert not taken, f"{worker} holds shards that others work on: {taken}"
            self.at_work.update(dict.fromkeys(shards, worker))
        try:
            yield
        finally:
            with self.lock:
                for shard in shards:
                    del self.at_work[shard]


def test_no_shard_is_worked_on_by_two_and_no_row_is_claimed_twice(alias: str) -> None:
    """Workers come, go and sleep through their leases while they share a backlog."""
    ids = factories.rows(alias, 240, key=lambda number: f"key-{number % 60}")
    repository = factories.repository()
    floor = Floor()
    workers = [factories.leases(alias, time.monotonic) for _ in range(5)]
    deadline = time.monotonic() + DEADLINE_S

    def work(number: int) -> list[int]:
        chance, leases = random.Random(number), workers[number]
        mine: list[int] = []
        while repository.claim(shards=None, limit=1, max_length=0).rows:
            assert time.monotonic() < deadline, "the backlog never ends"
            held = leases.refresh()
            with floor.working(leases.presence.worker_id, held):
                for _ in range(chance.randint(1, 3)):
                    claim = repository.claim(shards=held, limit=4, max_length=0)
                    claimed = [row.id for row in claim.rows]
                    if claimed:
                        marked = repository.mark_published(claimed, claimed_at=claim.claimed_at, redeliver_after=HOUR)
                        assert (marked.count, marked.held) == (len(claimed), [])
                        mine += claimed
            if chance.random() < 0.15:
                leases.release()
            elif chance.random() < 0.15:
                factories.expire(alias, leases.presence.worker_id)
        return mine

    shares = together(work, range(len(workers)))

    assert sorted(row_id for share in shares for row_id in share) == ids
    for _ in range(3):  # whoever is alive gives back and takes
        held = [leases.refresh() for leases in workers]
    assert sorted(shard for share in held for shard in share) == list(range(SHARD_COUNT))
    assert max(map(len, held)) - min(map(len, held)) <= 1


# --- consumers -------------------------------------------------------------------------------------------------------


def test_consumers_that_get_the_same_records_at_once_have_one_effect_an_event_in_order(alias: str, toys: Toys) -> None:
    """As after a rebalance that went wrong: everybody has every record, in batches cut and ordered by chance."""
    chance = random.Random(7)
    ids = [factories.row(alias, key=chance.choice(KEYS), event_type=chance.choice(HANDLED)) for _ in range(90)]
    failures = {row_id: chance.choices([0, 1, 2], [80, 15, 5])[0] for row_id in ids}
    for row_id, times in failures.items():
        if times:
            toys.fail(row_id, ValueError("not yet"), times=times)
    consumers = [factories.consumer(alias, toys) for _ in range(3)]
    chances = [random.Random(number) for number in range(len(consumers))]

    def consume(number: int) -> None:
        mine = records[:]
        while mine:
            size = chances[number].randint(1, 25)
            batch, mine = mine[:size], mine[size:]
            chances[number].shuffle(batch)
            consumers[number].handle(batch)

    deadline = time.monotonic() + DEADLINE_S
    while set(factories.statuses(alias).values()) != {"consumed"}:
        assert time.monotonic() < deadline, factories.status_counts(alias)
        factories.make_due(alias)
        records = factories.records_of(alias, ids)
        together(consume, range(len(consumers)))

    made = effects(alias)
    assert sorted(effect.outbox_id for effect in made) == ids
    assert {effect.outbox_id: effect.attempt - 1 for effect in made} == failures
    for key in {effect.message_key for effect in made}:
        of_key = [effect.outbox_id for effect in made if effect.message_key == key]
        assert of_key == sorted(of_key)
    assert sum(consumer.totals.consumed for consumer in consumers) == len(ids)
    assert sum(consumer.totals.retried for consumer in consumers) == sum(failures.values())


# --- the same rows ---------------------------------------------------------------------------------------------------


@dataclass
class Books:
    """What everybody did to each row, as far as it was committed."""

    moves: Counter[tuple[int, Transition]] = field(default_factory=Counter)
    pruned: int = 0
    inserted: int = 0
    contention: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, transition: Transition, ids: Sequence[int]) -> None:
        with self.lock:
            self.moves.update((row_id, transition) for row_id in ids)


class HotRows:
    """A few rows that everybody wants, by way of the repository alone."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.repository = factories.repository()
        self.books = Books()
        self.ids = factories.rows(alias, 24, key=lambda number: f"key-{number % 3}")
        self.known: list[Locked] = []

    def work(self, number: int) -> None:
        chance = random.Random(number)
        trades = [self.relay, self.consumer, self.failing_consumer, self.person, self.pruner, self.writer]
        for _ in range(70):
            trade = trades[number] if chance.random() < 0.7 else chance.choice(trades)
            try:
                trade(chance)
            except DatabaseError as error:
                if trade == self.writer or trouble_of(error, self.alias) is not Trouble.CONTENTION:
                    raise
                self.books.contention[trade.__name__] += 1  # those do it again

    def relay(self, chance: random.Random) -> None:
        claim = self.repository.claim(shards=None, limit=chance.randint(1, 6), max_length=0)
        for row in claim.rows:
            marked = self.repository.mark_published([row.id], claimed_at=claim.claimed_at, redeliver_after=timedelta(0))
            self.books.note(MARK_PUBLISHED, [row.id] * marked.count)

    def consumer(self, chance: random.Random) -> None:
        with transaction.atomic(using=self.alias):
            rows = self.repository.lock(self.some(chance, 6), max_length=UNLIMITED)
            self.repository.blockers(rows)
            live = [row.id for row in rows if row.status in UNFINISHED]
            waiting = [row_id for row_id in live if chance.random() < 0.5]
            done = [row_id for row_id in live if row_id not in waiting and chance.random() < 0.08]
            until = self.repository.now() - timedelta(seconds=1)
            assert self.repository.wait(waiting, until=until) == len(waiting), "they are locked"
            assert self.repository.mark_consumed(done) == len(done), "they are locked"
        self.books.note(WAIT, waiting)
        self.books.note(CONSUME, done)

    def failing_consumer(self, chance: random.Random) -> None:
        """Lock and let go, as after a rollback, and note the failure later: perhaps when it is old."""
        with transaction.atomic(using=self.alias):
            self.known += self.repository.lock(self.some(chance, 2), max_length=0)
        for row in [chance.choice(self.known), self.known[-1]]:
            if row.status not in UNFINISHED:
                continue
            due_at = self.repository.now() - timedelta(seconds=1)
            with transaction.atomic(using=self.alias):
                noted = self.repository.retry(row, due_at=due_at, failure=FAILURE)
            self.books.note(RETRY, [row.id] * noted)
        row_id = self.some(chance, 1)[0]
        if chance.random() < 0.15:
            parks_key = chance.random() < 0.5
            is_relay = chance.random() < 0.5
            claimed_at = to_db(connections[self.alias], self.repository.now())
            with transaction.atomic(using=self.alias):
                buried = (
                    self.repository.bury_refused(row_id, failure=FAILURE, parks_key=parks_key, claimed_at=claimed_at)
                    if is_relay
                    else self.repository.bury(row_id, failure=FAILURE, parks_key=parks_key)
                )
            self.books.note(BURY, [row_id] * buried)

    def person(self, chance: random.Random) -> None:
        """Replay or give up as the admin does it: what is dead is locked first."""
        route = self.repository.route
        # Rows of even ids die for good, so that their attempts can be counted.
        wanted = [row_id for row_id in self.some(chance, 6) if row_id % 2]
        with transaction.atomic(using=self.alias):
            dead = [row.pk for row in operations._lock_dead(route, wanted)]
            if chance.random() < 0.8:
                assert self.repository.replay(dead) == len(dead), "they are locked"
                replayed = dead
            else:
                self.repository.give_up(dead, by="ann", reason="not needed")
                replayed = []
        self.books.note(REPLAY, replayed)

    def pruner(self, chance: random.Random) -> None:
        pruning = Pruning(self.repository, chance.randint(1, 9), NEVER, lambda _deleted: None)
        deleted = pruning.consumed(older_than=timedelta(0))
        with self.books.lock:
            self.books.pruned += deleted

    def writer(self, chance: random.Random) -> None:
        given = [NewRow(NOTE, f"key-{chance.randrange(3)}", b'{"payload": {}}', 20) for _ in range(2)]
        with transaction.atomic(using=self.alias):
            self.repository.insert(given)
        with self.books.lock:
            self.books.inserted += len(given)

    def some(self, chance: random.Random, most: int) -> list[int]:
        return chance.sample(self.ids, chance.randint(1, most))


def test_no_change_is_lost_among_those_who_want_the_same_rows(alias: str) -> None:
    hot = HotRows(alias)

    together(hot.work, range(6))

    found = {row.id: row for row in AgentOutboxMessage.objects.using(alias)}
    moves = hot.books.moves
    assert len(found) == len(hot.ids) + hot.books.inserted - hot.books.pruned
    assert sum(1 for row_id in hot.ids if row_id not in found) == hot.books.pruned
    for row_id in hot.ids:
        row = found.get(row_id)
        status = row.status if row is not None else Status.CONSUMED
        assert moves[row_id, CONSUME] == (status == Status.CONSUMED)
        assert moves[row_id, BURY] - moves[row_id, REPLAY] == (status == Status.DEAD)
        if row is not None and row_id % 2 == 0:
            assert row.retry_count == moves[row_id, RETRY]
    assert sum(hot.books.contention.values()) <= 5, hot.books.contention


# --- who comes late --------------------------------------------------------------------------------------------------


def test_relay_that_slept_leaves_a_refused_row_alone_that_was_mended_since(
    alias: str, broker: MemoryBroker, toys: Toys, clock: ManualClock
) -> None:
    row_id = factories.row(alias)
    broker.refuse(lambda _record: "too large")
    sleeper = factories.relay(alias, broker, toys, clock, batch_size=1)
    sleeper.step()  # sent, and the answer not looked at yet
    factories.expire(alias, sleeper._leases.presence.worker_id)
    other = factories.relay(alias, broker, toys, clock)
    other.step()
    assert factories.get(alias, row_id).status == Status.DEAD
    broker.refuse(None)
    factories.repository().replay([row_id])
    other.step()
    assert factories.get(alias, row_id).status == Status.PUBLISHED

    clock.advance(HOUR.total_seconds())
    sleeper.step()

    assert factories.get(alias, row_id).status == Status.PUBLISHED


@pytest.mark.xfail(strict=True, reason="a replayed event has no attempts again, as the one before had")
def test_consumer_that_slept_leaves_a_row_alone_that_was_replayed_since(alias: str, toys: Toys) -> None:
    row_id = factories.row(alias, status=Status.PUBLISHED)
    records = factories.records_of(alias, [row_id])
    toys.fail(row_id, Discard("not like this"))
    sleeper, other = factories.consumer(alias, toys), factories.consumer(alias, toys)
    note_failure = sleeper._handling._note_failure

    def note_late(row: Locked, error: Exception) -> None:
        other.handle(records)
        toys.mend(row_id)
        assert factories.repository().replay([row_id]) == 1
        note_failure(row, error)

    sleeper._handling._note_failure = note_late  # type: ignore[method-assign]
    sleeper.handle(records)

    assert factories.get(alias, row_id).status == Status.PENDING


# --- everybody -------------------------------------------------------------------------------------------------------

PUBLISHERS = 2
TRANSACTIONS = 18
UNREADABLE = "v9"


@dataclass(frozen=True)
class Event:
    """What was published, and what is meant to become of it."""

    id: int
    key: str
    event_type: str
    failures: int = 0
    dies: str = ""
    """How it dies, if it does: to be mended and replayed, to be edited, or to be given up."""

    @property
    def lets_others_pass(self) -> bool:
        return bool(self.dies) and self.event_type not in {PARKED, PARKED_BULK}


class Bustle:
    """Publishers, relays and consumers that come and go, people and pruning, all on threads of their own."""

    def __init__(self, alias: str, seed: int) -> None:
        self.alias, self.seed = alias, seed
        self.toys = Toys()
        self.toys.before = self.note_handling
        self.broker = MemoryBroker(partitions=3)
        self.stop = StopFlag()
        self.events: dict[int, Event] = {}
        self.committed_at: dict[int, float] = {}
        self.looked_at: dict[int, float] = {}
        """When, at the latest, the transaction began that found the event to have no predecessor."""
        self.began = threading.local()
        self.replayed: list[int] = []
        self.given_up: list[int] = []
        self.deleted: list[int] = []
        self.errors: list[BaseException] = []

    # --- who is there --------------------------------------------------------------------------------------------

    def publisher(self, number: int) -> None:
        chance = random.Random(self.seed * 100 + number)
        for _ in range(TRANSACTIONS):
            with transaction.atomic(using=self.alias):
                made = [self.insert(chance) for _ in range(chance.randint(1, 4))]
                is_rolled_back = chance.random() < 0.15
                transaction.set_rollback(is_rolled_back, using=self.alias)
                if not is_rolled_back:
                    self.events.update({event.id: event for event in made})
            if not is_rolled_back:
                self.committed_at.update(dict.fromkeys((event.id for event in made), time.monotonic()))

    def insert(self, chance: random.Random) -> Event:
        dies = chance.choices(["", "mend", "edit", "give up"], [82, 8, 5, 5])[0]
        key, event_type = chance.choice(KEYS), chance.choice(HANDLED)
        row_id = factories.row(
            self.alias, key=key, event_type=event_type, version=UNREADABLE if dies == "edit" else "v2"
        )
        event = Event(row_id, key, event_type, 0 if dies else chance.choices([0, 1, 2], [85, 10, 5])[0], dies)
        if dies in {"mend", "give up"}:
            self.toys.fail(row_id, Discard("not like this"))
        elif event.failures:
            self.toys.fail(row_id, ValueError("not yet"), times=event.failures)
        return event

    def relay(self) -> None:
        self.new_relay().run(self.stop)

    def relays_that_come_and_go(self) -> None:
        while not self.stop.is_set:
            self.new_relay().run(self.stop, once=True)
            self.stop.wait(timedelta(milliseconds=20))

    def consumer(self) -> None:
        self.new_consumer().run(self.stop)

    def consumers_that_come_and_go(self) -> None:
        while not self.stop.is_set:
            self.new_consumer().run(self.stop, max_events=15)

    def pruner(self) -> None:
        pruning = Pruning(factories.repository(), 20, self.stop, lambda _deleted: None)
        while not self.stop.wait(timedelta(milliseconds=5)):
            self.deleted.append(pruning.consumed(older_than=timedelta(0)))

    def person(self) -> None:
        """Decide on everything that is dead, as fast as another person who does the same."""
        request: Any = SimpleNamespace(user=SimpleNamespace(pk=1, get_username=lambda: "ann"))
        while not self.stop.wait(timedelta(milliseconds=5)):
            for row in list(self.open_rows().filter(status=Status.DEAD).order_by("-id")):
                try:
                    self.decide(request, row)
                except NotDoneError:
                    continue  # the admin says so, and the person tries again

    def decide(self, request: Any, row: AgentOutboxMessage) -> None:
        event = self.events[row.pk]
        if event.dies == "give up":
            self.given_up += [row.pk] * operations.give_up(request, SERVICE, [row.pk], reason="not needed")
        elif event.dies == "edit":
            mended = encode_envelope(factories.envelope(event.event_type, key=event.key))
            edited = operations.edit(
                request, SERVICE, row.pk, payload=mended, unchanged_since=row.updated_at, then_replay=True
            )
            self.replayed += [row.pk] * edited
        else:
            self.toys.mend(row.pk)
            self.replayed += [row.pk] * operations.replay(request, SERVICE, [row.pk])

    # --- how they are made ---------------------------------------------------------------------------------------

    def new_relay(self) -> Relay:
        role = factories.leases(self.alias, time.monotonic)
        brisk = ShardLeases(role.presence, heartbeat=timedelta(milliseconds=100), clock=time.monotonic)
        return factories.relay(
            self.alias,
            self.broker,
            self.toys,
            time.monotonic,
            worker_leases=brisk,
            batch_size=8,
            poll_interval_ms=2,
            max_poll_interval_ms=10,
            redeliver_after_seconds=0.2,
        )

    def new_consumer(self) -> Consumer:
        consumer = factories.consumer(
            self.alias,
            self.toys,
            broker=self.broker,
            clock=time.monotonic,
            retry_policy=lambda _type: RetryPolicy(base=timedelta(milliseconds=5), jitter=0.0),
            batch_size=20,
            poll_interval_ms=5,
            wait_min_ms=5,
            wait_max_seconds=0.1,
        )
        in_one_transaction = consumer._handling._in_one_transaction

        def timed(records: Any) -> Any:
            self.began.at = time.monotonic()
            return in_one_transaction(records)

        consumer._handling._in_one_transaction = timed  # type: ignore[method-assign]
        return consumer

    def note_handling(self, deliveries: Sequence[Delivery[Any]]) -> None:
        for delivery in deliveries:
            self.looked_at[delivery.outbox_id] = self.began.at

    # --- what happens --------------------------------------------------------------------------------------------

    def run(self) -> None:
        workers = [
            self.start(work)
            for work in (
                self.relay,
                self.relays_that_come_and_go,
                self.consumer,
                self.consumers_that_come_and_go,
                self.pruner,
                self.person,
                self.person,
            )
        ]
        publishers = [self.start(lambda number=number: self.publisher(number)) for number in range(PUBLISHERS)]
        try:
            for publisher in publishers:
                publisher.join(DEADLINE_S)
            wait_until(self.is_done, timeout=DEADLINE_S, message="every event is done with")
        finally:
            self.stop.set()
            for worker in workers:
                worker.join(30)
        assert not any(thread.is_alive() for thread in (*workers, *publishers))
        assert self.errors == []

    def start(self, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - shown by the test
                self.errors.append(error)
            finally:
                connections.close_all()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def is_done(self) -> bool:
        assert self.errors == []
        return not self.open_rows().exists()

    def open_rows(self) -> Any:
        """Return the rows that something still has to happen to."""
        return AgentOutboxMessage.objects.using(self.alias).filter(resolved_at=None).exclude(status=Status.CONSUMED)

    # --- what was promised ---------------------------------------------------------------------------------------

    def check_each_event_is_handled_once(self) -> None:
        made = {effect.outbox_id: effect.attempt - 1 for effect in effects(self.alias)}
        expected = {event.id: event.failures for event in self.events.values() if event.dies != "give up"}
        assert made == expected, "one effect, and nothing but its own errors cost an attempt since the last replay"
        assert ToyEffect.objects.using(self.alias).count() == len(expected)

    def check_what_is_left(self) -> None:
        left = {row.id: row for row in AgentOutboxMessage.objects.using(self.alias)}
        assert set(left) <= set(self.events)
        assert len(left) == len(self.events) - sum(self.deleted)
        hopeless = {event.id for event in self.events.values() if event.dies == "give up"}
        assert {row_id for row_id, row in left.items() if row.status == Status.DEAD} == hopeless
        assert all(row.status == Status.CONSUMED for row_id, row in left.items() if row_id not in hopeless)
        assert sorted(self.given_up) == sorted(hopeless)
        assert set(self.replayed) == {event.id for event in self.events.values() if event.dies in {"mend", "edit"}}
        for row_id in hopeless:
            assert (left[row_id].resolved_by, left[row_id].last_error) == ("ann", "Discard: not like this")

    def check_rejected_records_are_those_of_rows_that_were_pruned(self) -> None:
        left = set(factories.statuses(self.alias))
        for rejected in RejectedRecord.objects.using(self.alias):
            row_id = decode_message(bytes(rejected.value)).outbox_id
            assert row_id in self.events
            assert row_id not in left or self.events[row_id].dies != "give up"
            assert "pruned" in rejected.reason

    def check_order(self) -> None:
        made = [effect.outbox_id for effect in effects(self.alias)]
        for key in KEYS:
            of_key = [row_id for row_id in made if self.events[row_id].key == key]
            for at, later in enumerate(of_key):
                overtaken = [
                    earlier
                    for earlier in of_key[at + 1 :]
                    if earlier < later
                    and not self.events[earlier].lets_others_pass
                    and self.committed_at[earlier] < self.looked_at[later]
                ]
                assert not overtaken, f"{later} took effect before {overtaken}, which were there"


@pytest.mark.parametrize("seed", range(2))
def test_each_event_is_handled_once_while_everybody_is_at_work(
    alias: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_log", lambda *_: None)  # the journal is in another database
    bustle = Bustle(alias, seed)

    bustle.run()

    bustle.check_each_event_is_handled_once()
    bustle.check_what_is_left()
    bustle.check_rejected_records_are_those_of_rows_that_were_pruned()
    bustle.check_order()
