"""Many at once on the same rows, each on a thread and a connection of its own: nothing is lost and nothing done twice.

An error of a lost lock may reach only those who do the work again: consumers, relays and pruning by themselves, and a
person whom the admin asks to. Whoever publishes must never see one.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from django.db import DatabaseError, connections, transaction

from agent_events.agent.models import AgentOutboxMessage
from outbox import Discard
from outbox.admin import operations
from outbox.brokers.memory import MemoryBroker
from outbox.coordination.database_errors import ErrorKind, kind_of
from outbox.coordination.shutdown import StopFlag
from outbox.lifecycle import BURY, CONSUME, MARK_PUBLISHED, REPLAY, RETRY, UNFINISHED, WAIT, Status, Transition
from outbox.operations.pruning import Pruning
from outbox.storage.dialects import to_db
from outbox.storage.rows import Locked, NewRow
from tests import factories
from tests.repositories import FAILURE, UNLIMITED
from tests.threads import together
from tests.toys import HANDLED, NOTE, ManualClock, Toys, effects

pytestmark = pytest.mark.parametrize("database_alias", ["mariadb", "mysql", "postgres"], indirect=True)

NEVER = StopFlag()
HOUR = timedelta(hours=1)
KEYS = tuple("abcdef")
DEADLINE_S = 60


# --- the same records ------------------------------------------------------------------------------------------------


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
                if trade == self.writer or kind_of(error, self.alias) is not ErrorKind.CONFLICT:
                    raise
                self.books.contention[trade.__name__] += 1  # those do it again

    def relay(self, chance: random.Random) -> None:
        claim = self.repository.claim(shards=None, limit=chance.randint(1, 6), max_length=0)
        for row in claim.rows:
            marked = self.repository.mark_published(
                [row.id], claimed_at=claim.claimed_at, redeliver_after=timedelta(0), counts=claim.counts
            )
            self.books.note(MARK_PUBLISHED, [row.id] * marked.count)

    def consumer(self, chance: random.Random) -> None:
        with transaction.atomic(using=self.alias):
            rows = self.repository.lock(self.some(chance, 6), max_length=UNLIMITED)
            self.repository.predecessors(rows)
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


def test_consumer_that_slept_leaves_a_row_alone_that_was_replayed_since(alias: str, toys: Toys) -> None:
    row_id = factories.row(alias, status=Status.PUBLISHED)
    records = factories.records_of(alias, [row_id])
    toys.fail(row_id, Discard("not like this"))
    sleeper, other = factories.consumer(alias, toys), factories.consumer(alias, toys)
    charge = sleeper._processor._charges.charge

    def note_late(row: Locked, error: Exception) -> None:
        other.handle(records)
        toys.mend(row_id)
        assert factories.repository().replay([row_id]) == 1
        charge(row, error)

    sleeper._processor._charges.charge = note_late  # type: ignore[method-assign]
    sleeper.handle(records)

    assert factories.get(alias, row_id).status == Status.PENDING
