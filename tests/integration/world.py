"""A service and everything around it, where something happens by chance and each new effect is looked at."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta

from django.db import transaction

from agent_events.agent.models import AgentOutboxMessage
from outbox import Discard, Retry
from outbox.brokers.memory import MemoryBroker
from outbox.consumer.loop import Consumer
from outbox.exceptions import BrokerUnavailableError
from outbox.relay.loop import Relay
from outbox.wire.envelope import encode_envelope
from tests import factories
from tests.toys import HANDLED, PARKED, PARKED_BULK, ManualClock, ToyEffect, Toys
from tests.transactions import deadlock_of

KEYS = ("a", "b", "c", "d")
TOPIC = "smartflow.agent.outbox"
REDELIVER_AFTER_S = 300
GARBAGE = (b"garbage", b"{}", b'{"outbox_id": 999999999999, "event_type": "toy.note"}')


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
            self.toys.fail(event.id, lambda _delivery: None if next(losses, None) is None else deadlock_of(self.alias))

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
        self.chance.choice(self.relays).loop(once=True).turn()

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
                self.act(relay.loop(once=True).turn)
                self.act(relay.loop(once=True).turn)
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
