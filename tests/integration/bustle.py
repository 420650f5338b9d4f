"""Publishers, relays and consumers on threads of their own, until everything that was published is done with."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import connections, transaction

from agent_events.agent.models import AgentOutboxMessage
from outbox import Delivery, Discard, RetryPolicy
from outbox.brokers.memory import MemoryBroker
from outbox.consumer.loop import Consumer
from outbox.coordination.leases import ShardLeases
from outbox.coordination.shutdown import StopFlag
from outbox.lifecycle import Status
from outbox.relay.confirmations import OtherHands, OwnHand
from outbox.relay.loop import Relay
from tests import factories
from tests.threads import Threads
from tests.toys import HANDLED, PARKED, PARKED_BULK, Toys, effects
from tests.waiting import wait_until

DEADLINE_S = 60
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


class Beginnings:
    """A witness of nothing, which is asked before each transaction and notes when that was."""

    def __init__(self, began: Any) -> None:
        self._began = began

    def token(self) -> object | None:
        self._began.at = time.monotonic()
        return None

    def lived_on(self, token: object | None) -> bool:
        return False

    def silent_s(self, since: float) -> float:
        return 0.0


class Bustle:
    """Everybody at once, and what tells afterwards who overtook whom."""

    keys: Sequence[str]
    publishers: int
    transactions: int
    """How many each publisher makes, of which some are rolled back."""
    deaths: Mapping[str, int] = {"": 1}
    """How likely it is that an event dies in which way."""

    def __init__(self, alias: str, seed: int) -> None:
        self.alias, self.seed = alias, seed
        self.toys = Toys()
        self.toys.before = self._note_handling
        self.broker = MemoryBroker(partitions=3)
        self.threads = Threads()
        self.stop = StopFlag()
        self.events: dict[int, Event] = {}
        self.committed_at: dict[int, float] = {}
        self.looked_at: dict[int, float] = {}
        """When, at the earliest, the transaction began that found the event to have no predecessor."""
        self._began = threading.local()

    # --- what happens --------------------------------------------------------------------------------------------

    def run(self, workers: Iterable[Callable[[], None]]) -> None:
        """Publish while ``workers`` are at work, and end them when everything is done with."""
        working = [self.threads.start(work) for work in workers]
        publishing = [
            self.threads.start(lambda number=number: self.publisher(number)) for number in range(self.publishers)
        ]
        try:
            for publisher in publishing:
                publisher.join(DEADLINE_S)
            wait_until(self.is_done, timeout=DEADLINE_S, message="every event is done with")
        finally:
            self.stop.set()
            for worker in working:
                worker.join(30)
        self.threads.check_all_ended()

    def is_done(self) -> bool:
        self.threads.check_no_errors()
        return not self.open_rows().exists()

    def open_rows(self) -> Any:
        """Return the rows that something still has to happen to."""
        return AgentOutboxMessage.objects.using(self.alias).filter(resolved_at=None).exclude(status=Status.CONSUMED)

    # --- who is there --------------------------------------------------------------------------------------------

    def publisher(self, number: int) -> None:
        chance = random.Random(self.seed * 100 + number)
        for _ in range(self.transactions):
            with transaction.atomic(using=self.alias):
                made = [self.insert(chance) for _ in range(chance.randint(1, 4))]
                is_rolled_back = chance.random() < 0.15
                transaction.set_rollback(is_rolled_back, using=self.alias)
                if not is_rolled_back:  # SQLite gives the other ids away again
                    self.plan(made)
            if not is_rolled_back:
                self.committed_at.update(dict.fromkeys((event.id for event in made), time.monotonic()))

    def insert(self, chance: random.Random) -> Event:
        dies = chance.choices(list(self.deaths), list(self.deaths.values()))[0]
        key, event_type = chance.choice(self.keys), chance.choice(HANDLED)
        row_id = factories.row(
            self.alias, key=key, event_type=event_type, version=UNREADABLE if dies == "edit" else "v2"
        )
        return Event(row_id, key, event_type, 0 if dies else chance.choices([0, 1, 2], [85, 10, 5])[0], dies)

    def plan(self, made: Iterable[Event]) -> None:
        """Have the handlers fail as the events are meant to."""
        for event in made:
            self.events[event.id] = event
            if event.dies in {"mend", "give up"}:
                self.toys.fail(event.id, Discard("not like this"))
            elif event.failures:
                self.toys.fail(event.id, ValueError("not yet"), times=event.failures)

    def relay(self) -> None:
        self.new_relay().run(self.stop)

    def consumer(self) -> None:
        self.new_consumer().run(self.stop)

    def new_relay(self, **options: Any) -> Relay:
        role = factories.leases(self.alias, time.monotonic)
        brisk = ShardLeases(role.presence, heartbeat=timedelta(milliseconds=100), clock=time.monotonic)
        return factories.relay(
            self.alias,
            self.broker,
            self.toys,
            time.monotonic,
            worker_leases=brisk,
            hand=OwnHand() if connections[self.alias].vendor == "sqlite" else OtherHands("marks"),
            batch_size=8,
            poll_interval_ms=2,
            **options,
        )

    def new_consumer(self) -> Consumer:
        return factories.consumer(
            self.alias,
            self.toys,
            broker=self.broker,
            witness=Beginnings(self._began),
            clock=time.monotonic,
            retry_policy=lambda _type: RetryPolicy(base=timedelta(milliseconds=5), jitter=0.0),
            batch_size=20,
            poll_interval_ms=5,
            wait_min_ms=5,
            wait_max_seconds=0.1,
        )

    def _note_handling(self, deliveries: Sequence[Delivery[Any]]) -> None:
        for delivery in deliveries:
            self.looked_at[delivery.outbox_id] = self._began.at

    # --- what was promised ---------------------------------------------------------------------------------------

    def check_order(self) -> None:
        made = [effect.outbox_id for effect in effects(self.alias)]
        for key in self.keys:
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
