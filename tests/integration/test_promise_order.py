"""A service under everything at once, by chance and with a seed; the promises are checked row by row.

Two relays and two consumers work by turns while events are published, rolled back and committed late, handlers fail,
records come twice, get lost or are garbage, workers crash at bad moments, the broker goes away, and a person replays,
edits and gives up. In the end: every event is consumed or dead with a reason (promise 1), has one effect or none
(promise 2), and no effect came before that of an unfinished predecessor of its key (promise 3). On the way, nothing
but an error of its own cost an event an attempt (promise 4).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction

from agent_events.agent.models import AgentOutboxMessage
from outbox import Delivery, Discard, Retry, RetryPolicy
from outbox.brokers.base import IncomingRecord
from outbox.brokers.memory import MemoryBroker
from outbox.consumer import Consumer
from outbox.envelope import encode_envelope
from outbox.exceptions import BrokerUnavailableError
from outbox.leases import ShardLeases
from outbox.models import RejectedRecord
from outbox.relay import Relay
from outbox.shutdown import StopFlag
from tests import factories
from tests.toys import HANDLED, PARKED, PARKED_BULK, ManualClock, ToyEffect, Toys
from tests.waiting import wait_until

KEYS = ("a", "b", "c", "d")
TOPIC = "smartflow.agent.outbox"
REDELIVER_AFTER_S = 300
STEPS = 120
GARBAGE = (b"garbage", b"{}", b'{"outbox_id": 999999999999, "event_type": "toy.note"}')

WORLDS = int(os.environ.get("OUTBOX_TEST_WORLDS", "16"))
"""How many to try on SQLite, and a quarter of it on each other database; set it high for a night's run."""

SEEDS = [("default", seed) for seed in range(WORLDS)] + [
    (alias, seed) for alias in ("mariadb", "postgres") for seed in range(10_000, 10_000 + WORLDS // 4)
]


@pytest.mark.parametrize(("database_alias", "seed"), SEEDS, indirect=["database_alias"])
def test_every_event_ends_once_and_in_the_order_of_its_key(alias: str, seed: int) -> None:
    world = World(alias, random.Random(seed))

    for _ in range(STEPS):
        world.do_something()
    world.bring_to_an_end()

    world.check_every_event_is_consumed_or_dead_with_a_reason()
    world.check_every_event_has_one_effect_or_none()
    world.check_nothing_but_its_own_errors_cost_an_attempt()
    world.check_garbage_is_kept()


@dataclass(slots=True)
class Event:
    """What was published, and what is meant to become of it."""

    id: int
    key: str
    event_type: str
    failures: int = 0
    """Attempts that fail before one succeeds, counted from the last replay."""
    dies: str = ""
    """Why it cannot succeed: discard, attempts, unreadable, refused; empty when it can."""

    @property
    def parks(self) -> bool:
        return self.event_type in {PARKED, PARKED_BULK}


@dataclass(slots=True)
class World:
    """One service and everything around it."""

    alias: str
    chance: random.Random
    toys: Toys = field(default_factory=Toys)
    clock: ManualClock = field(default_factory=ManualClock)
    events: dict[int, Event] = field(default_factory=dict)
    reserved: list[int] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    stolen: set[tuple[int, int]] = field(default_factory=set)
    crashed: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    unfinished: set[int] = field(default_factory=set)
    parked: set[int] = field(default_factory=set)
    broker: MemoryBroker = field(init=False)
    relays: list[Relay] = field(init=False)
    consumers: list[Consumer] = field(init=False)
    last_effect: int = 0

    def __post_init__(self) -> None:
        self.broker = MemoryBroker(partitions=3)
        self.broker.refuse(lambda record: "too large" if record.outbox_id in self.refused else None)
        self.relays = [self.new_relay() for _ in range(2)]
        self.consumers = [self.new_consumer() for _ in range(2)]

    # --- what happens ------------------------------------------------------------------------------------------------

    def do_something(self) -> None:
        actions: list[tuple[int, Callable[[], None]]] = [
            (10, self.publish),
            (2, self.publish_and_roll_back),
            (2, self.reserve_an_id),
            (2, self.commit_late),
            (30, self.relay_step),
            (30, self.consumer_step),
            (8, self.let_pauses_end),
            (8, lambda: self.clock.advance(self.chance.choice([0.5, 2, 11, 80]))),
            (4, self.record_comes_again),
            (2, self.garbage_comes),
            (3, self.records_get_lost),
            (2, self.time_passes_for_what_is_stuck),
            (2, self.relay_crashes),
            (2, self.consumer_crashes),
            (3, self.broker_goes_or_comes),
            (3, self.person_decides),
        ]
        weights, doings = zip(*actions, strict=True)
        [act] = self.chance.choices(doings, weights)
        self.act(act)

    def act(self, act: Callable[[], None]) -> None:
        self.log.append(getattr(act, "__name__", "time"))
        act()
        self.watch()

    def publish(self, ids: Iterable[int | None] | None = None) -> None:
        made: list[Event] = []
        with transaction.atomic(using=self.alias):
            for row_id in ids or [None] * self.chance.randint(1, 5):
                made.append(self.insert(row_id))
        for event in made:
            self.events[event.id] = event
            self.unfinished.add(event.id)

    def insert(self, row_id: int | None) -> Event:
        event = Event(0, self.chance.choice(KEYS), self.chance.choice(HANDLED))
        event.dies = self.chance.choices(["", "discard", "attempts", "unreadable", "refused"], [80, 4, 4, 4, 4])[0]
        event.failures = self.chance.choices([0, 1, 2], [75, 15, 10])[0] if not event.dies else 0
        given = {} if row_id is None else {"id": row_id}
        event.id = factories.row(
            self.alias,
            key=event.key,
            event_type=event.event_type,
            version="v9" if event.dies == "unreadable" else "v2",
            max_retry=2 if event.dies == "attempts" else 5,
            next_retry_at=self.chance.choice([factories.database_now(self.alias), None]),
            **given,
        )
        if event.dies == "refused":
            self.refused.add(event.id)
        self.plan(event)
        return event

    def plan(self, event: Event) -> None:
        """Have the handler fail as the event is meant to."""
        if event.dies == "discard":
            self.toys.fail(event.id, Discard("never"))
        elif event.dies == "attempts":
            self.toys.fail(event.id, ValueError("no"))
        elif event.failures:
            error = self.chance.choice([ValueError("no"), Retry("later", after=timedelta(minutes=1))])
            self.toys.fail(event.id, error, times=event.failures)
        elif self.chance.random() < 0.05:
            losses = iter(range(self.chance.randint(1, 12)))
            self.toys.fail(event.id, lambda _delivery: None if next(losses, None) is None else deadlock(self.alias))

    def publish_and_roll_back(self) -> None:
        with transaction.atomic(using=self.alias):
            event = self.insert(None)
            transaction.set_rollback(True, using=self.alias)
        # SQLite gives the id away again.
        self.toys.mend(event.id)
        self.refused.discard(event.id)

    def reserve_an_id(self) -> None:
        """Stand for a transaction that has its id and takes its time to commit."""
        row_id = factories.row(self.alias)
        AgentOutboxMessage.objects.using(self.alias).filter(pk=row_id).delete()
        self.reserved.append(row_id)

    def commit_late(self) -> None:
        if self.reserved:
            self.publish([self.reserved.pop(self.chance.randrange(len(self.reserved)))])

    def relay_step(self) -> None:
        self.chance.choice(self.relays)._try_step()

    def consumer_step(self) -> None:
        self.step_of(self.chance.choice(self.consumers))

    def step_of(self, consumer: Consumer) -> bool:
        try:
            return consumer.step(self.chance.randint(1, 12))
        except BrokerUnavailableError:
            return False

    def let_pauses_end(self) -> None:
        factories.make_due(self.alias)

    def record_comes_again(self) -> None:
        records = self.broker.records(TOPIC)
        if records and not self.broker.is_away:
            again = self.chance.choice(records)
            partition = self.chance.choice([again.partition, self.chance.randrange(3)])
            self.broker.put(TOPIC, value=again.value, key=again.key, partition=partition)

    def garbage_comes(self) -> None:
        self.broker.put(TOPIC, value=self.chance.choice(GARBAGE), partition=self.chance.randrange(3))

    def records_get_lost(self) -> None:
        """Have somebody take records of the group and finish them without handling them."""
        if self.broker.is_away or self.chance.random() < 0.5:
            return
        thief = self.broker.subscribe(factories.repository().route, client_id="thief")
        taken = thief.receive(max_records=3, timeout=timedelta(0))
        self.stolen |= {(record.partition, record.offset) for record in taken}
        thief.commit(taken)
        thief.close()

    def time_passes_for_what_is_stuck(self) -> None:
        stuck = AgentOutboxMessage.objects.using(self.alias).filter(status="published")
        factories.let_get_stuck(self.alias, [each.id for each in stuck], by=timedelta(seconds=REDELIVER_AFTER_S + 1))
        self.clock.advance(REDELIVER_AFTER_S)

    def relay_crashes(self) -> None:
        """Lose what it knew: what was sent and not marked, and the leases until they run out."""
        number = self.chance.randrange(2)
        crashed, self.relays[number] = self.relays[number], self.new_relay()
        self.crashed.append(crashed._leases.presence.worker_id)
        if self.chance.random() < 0.7:
            self.leases_run_out()

    def leases_run_out(self) -> None:
        """Let the time pass that a crashed relay is waited for."""
        while self.crashed:
            factories.expire(self.alias, self.crashed.pop())

    def consumer_crashes(self) -> None:
        """Lose the offsets of what was handled and not committed."""
        number = self.chance.randrange(2)
        crashed, self.consumers[number] = self.consumers[number], self.new_consumer()
        if crashed._subscription is not None:
            crashed._subscription.close()

    def broker_goes_or_comes(self) -> None:
        if self.broker.is_away:
            self.broker.come_back()
        else:
            self.broker.go_away()

    def person_decides(self) -> None:
        dead = list(
            AgentOutboxMessage.objects.using(self.alias)
            .filter(status="dead", resolved_at=None)
            .values_list("id", flat=True)
        )
        if dead:
            self.decide(self.chance.choice(dead))

    def decide(self, row_id: int) -> None:
        event = self.events[row_id]
        repository = factories.repository()
        decision = self.chance.choice(["replay", "mend", "give up"])
        if decision == "give up":
            assert repository.give_up([row_id], by="ann", reason="not needed") == 1
            self.parked.discard(row_id)
            return
        if decision == "mend":
            event.dies, event.failures = "", 0
            self.refused.discard(row_id)
            self.toys.mend(row_id)
            payload = encode_envelope(factories.envelope(event.event_type, key=event.key))
            assert repository.edit(row_id, payload=payload) == 1
        assert repository.replay([row_id]) == 1
        self.parked.discard(row_id)
        self.unfinished.add(row_id)

    # --- who works ---------------------------------------------------------------------------------------------------

    def new_relay(self) -> Relay:
        return factories.relay(
            self.alias,
            self.broker,
            self.toys,
            self.clock,
            batch_size=self.chance.randint(1, 7),
            in_flight_batches=self.chance.randint(1, 3),
            reference_bytes=self.chance.choice([1, 10**6]),
            redeliver_after_seconds=REDELIVER_AFTER_S,
        )

    def new_consumer(self) -> Consumer:
        return factories.consumer(
            self.alias,
            self.toys,
            broker=self.broker,
            clock=self.clock,
            batch_bytes=self.chance.choice([200, 600, 10**6]),
        )

    # --- what is seen ------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Compare with the moment before: every new effect must have had no unfinished predecessor."""
        found = {
            each.id: each
            for each in AgentOutboxMessage.objects.using(self.alias).only("id", "status", "parks_key", "resolved_at")
        }
        died = {row_id for row_id in self.unfinished if found[row_id].status == "dead"}
        self.unfinished -= died
        self.parked |= {row_id for row_id in died if found[row_id].parks_key}
        for row_id in died:
            assert found[row_id].parks_key == self.events[row_id].parks
        new = ToyEffect.objects.using(self.alias).filter(id__gt=self.last_effect).order_by("id")
        for effect in list(new):
            self.last_effect = effect.id
            row_id = effect.outbox_id
            assert row_id in self.unfinished, f"a second effect, or one of a dead event: {row_id}; {self.log[-20:]}"
            overtaken = [
                each
                for each in self.unfinished | self.parked
                if each < row_id and self.events[each].key == effect.message_key
            ]
            assert not overtaken, f"{row_id} took effect before {overtaken}; {self.log[-20:]}"
            self.unfinished.discard(row_id)
        for row_id, row in found.items():
            is_finished = row.status in {"consumed", "dead"}
            assert is_finished == (row_id not in self.unfinished), f"{row_id} is {row.status}; {self.log[-20:]}"

    def bring_to_an_end(self) -> None:
        """Let everything come back and work until all is done; a person decides what is parked."""
        self.broker.come_back()
        self.leases_run_out()
        for _ in range(300):
            if not self.unfinished and not self.parked:
                return self.act(self.drain)
            self.act(self.let_pauses_end)
            self.act(self.time_passes_for_what_is_stuck)
            for relay in self.relays:
                self.act(relay._try_step)
                self.act(relay._try_step)
            for row_id in sorted(self.parked):
                self.act(lambda row_id=row_id: self.decide(row_id))
            self.act(self.drain)
        raise AssertionError(f"never done: {self.unfinished}, {self.parked}; {factories.statuses(self.alias)}")

    def drain(self) -> None:
        worked = True
        while worked:
            worked = False
            for consumer in self.consumers:
                worked = self.step_of(consumer) or worked

    # --- what was promised -------------------------------------------------------------------------------------------

    def check_every_event_is_consumed_or_dead_with_a_reason(self) -> None:
        found = list(AgentOutboxMessage.objects.using(self.alias))
        assert {row.id for row in found} == set(self.events), "what was rolled back is not there, what committed is"
        for row in found:
            event = self.events[row.id]
            assert row.status == ("dead" if event.dies else "consumed"), (event, row.last_error)
            if event.dies:
                reasons = {
                    "discard": "Discard: never",
                    "attempts": "ValueError: no",
                    "unreadable": "UnknownVersionError",
                    "refused": "too large",
                }
                assert reasons[event.dies] in row.last_error
                assert row.dead_at is not None

    def check_every_event_has_one_effect_or_none(self) -> None:
        made = sorted(ToyEffect.objects.using(self.alias).values_list("outbox_id", flat=True))
        assert made == sorted(event.id for event in self.events.values() if not event.dies)

    def check_nothing_but_its_own_errors_cost_an_attempt(self) -> None:
        for row in AgentOutboxMessage.objects.using(self.alias):
            event = self.events[row.id]
            cost = {"discard": 1, "attempts": 2, "unreadable": 0, "refused": 0, "": event.failures}[event.dies]
            assert row.retry_count == cost, (event, row.last_error)

    def check_garbage_is_kept(self) -> None:
        garbage = {
            (record.partition, record.offset) for record in self.broker.records(TOPIC) if record.value in GARBAGE
        }
        kept = list(RejectedRecord.objects.using(self.alias).values_list("partition", "offset"))
        assert len(kept) == len(set(kept))
        assert garbage - self.stolen <= set(kept) <= garbage


# --- the same with threads --------------------------------------------------------------------------------------------

PUBLISHERS = 3
TRANSACTIONS = 25


class Bustle:
    """Publishers, relays and consumers on threads of their own, until everything is done."""

    def __init__(self, alias: str, seed: int) -> None:
        self.alias = alias
        self.seed = seed
        self.toys = Toys()
        self.toys.before = self.note_handling
        self.broker = MemoryBroker(partitions=3)
        self.stop = StopFlag()
        self.committed_at: dict[int, float] = {}
        self.looked_at: dict[int, float] = {}
        """When, at the latest, the transaction began that then found the event to have no predecessor."""
        self.began = threading.local()
        self.failures: dict[int, int] = {}
        self.errors: list[BaseException] = []

    def note_handling(self, deliveries: Sequence[Delivery[Any]]) -> None:
        for delivery in deliveries:
            self.looked_at[delivery.outbox_id] = self.began.at

    def publisher(self, number: int) -> None:
        chance = random.Random(self.seed * 100 + number)
        for _ in range(TRANSACTIONS):
            with transaction.atomic(using=self.alias):
                ids = [
                    factories.row(self.alias, key=chance.choice(KEYS), event_type=chance.choice(HANDLED))
                    for _ in range(chance.randint(1, 4))
                ]
                is_rolled_back = chance.random() < 0.15
                transaction.set_rollback(is_rolled_back, using=self.alias)
                if not is_rolled_back:
                    for row_id in ids:
                        self.failures[row_id] = chance.choices([0, 1, 2], [85, 10, 5])[0]
                        if self.failures[row_id]:
                            self.toys.fail(row_id, ValueError("not yet"), times=self.failures[row_id])
            if not is_rolled_back:
                self.committed_at.update(dict.fromkeys(ids, time.monotonic()))

    def relay(self) -> None:
        role = factories.leases(self.alias, time.monotonic)
        brisk = ShardLeases(role.presence, heartbeat=timedelta(milliseconds=100), clock=time.monotonic)
        relay = factories.relay(
            self.alias, self.broker, self.toys, time.monotonic, worker_leases=brisk, batch_size=8, poll_interval_ms=2
        )
        relay.run(self.stop)

    def consumer(self) -> None:
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
        real_handle = consumer.handle

        def handle(records: Sequence[IncomingRecord]) -> None:
            self.began.at = time.monotonic()
            real_handle(records)

        consumer.handle = handle  # type: ignore[method-assign]
        consumer.run(self.stop)

    def run(self) -> None:
        workers = [self.start(work) for work in (self.relay, self.relay, self.consumer, self.consumer)]
        publishers = [self.start(lambda number=number: self.publisher(number)) for number in range(PUBLISHERS)]
        try:
            for publisher in publishers:
                publisher.join(60)
            wait_until(self.is_done, timeout=60, message="every event is consumed")
        finally:
            self.stop.set()
            for worker in workers:
                worker.join(30)
        assert not any(thread.is_alive() for thread in (*workers, *publishers))

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
        return set(factories.statuses(self.alias).values()) <= {"consumed"}


@pytest.mark.parametrize("seed", range(2))
def test_promises_hold_while_publishers_and_workers_run_at_once(alias: str, seed: int) -> None:
    bustle = Bustle(alias, seed)

    bustle.run()

    assert bustle.errors == []
    made = [effect.outbox_id for effect in ToyEffect.objects.using(alias).order_by("id")]
    assert sorted(made) == sorted(bustle.committed_at), "each has one effect, and what was rolled back has none"
    for row in AgentOutboxMessage.objects.using(alias):
        assert row.retry_count == bustle.failures[row.id], "waiting and contention cost nothing"
    for key in KEYS:
        of_key = [each for each in made if factories.get(alias, each).message_key == key]
        for at, later in enumerate(of_key):
            overtaken = [
                earlier
                for earlier in of_key[at + 1 :]
                if earlier < later and bustle.committed_at[earlier] < bustle.looked_at[later]
            ]
            assert not overtaken, f"{later} took effect before {overtaken}, which were there"


def deadlock(alias: str) -> Exception:
    """Return a lost deadlock as the alias's driver reports it."""
    error = OperationalError(1213, "Deadlock found")
    if connections[alias].vendor == "sqlite":
        error = OperationalError("database is locked")
    error.__cause__ = type("DeadlockDetected", (Exception,), {"sqlstate": "40P01"})()
    return error
