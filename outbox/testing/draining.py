"""Relay and consumer worked by hand, on the test's own thread and connection, over a broker in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from outbox import signals
from outbox.brokers.memory import MemoryBroker
from outbox.conf import outbox_settings
from outbox.consumer.watchdog import Watchdog
from outbox.coordination.leases import ShardLeases
from outbox.declarations.contracts import contracts
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import DrainError
from outbox.fields import SHARD_COUNT
from outbox.registry.catalog import repository_of
from outbox.registry.policies import EventPolicies
from outbox.relay.loop import Relay
from outbox.storage.status_rows import StatusRows
from outbox.workers.build import build_consumer, routes_of

_AT_ONCE: Final = timedelta(0)
_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class DeadEvent:
    """An event that died."""

    service: str
    outbox_id: int
    reason: str

    def __str__(self) -> str:
        return f"event {self.outbox_id} of {self.service}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Drained:
    """What ``drain`` did, in events. What is left has a back-off, or a parked event of its key, before it."""

    consumed: int
    retried: int
    waited: int
    rejected: int
    dead: tuple[DeadEvent, ...]


def drain(*services: str, ignore_backoff: bool = False, raise_on_dead: bool = False, max_rounds: int = 1000) -> Drained:
    """Relay and consume all that is due, and what handlers publish meanwhile, until nothing is left.

    It works for the named services, or for all, on this thread. ``ignore_backoff`` makes events that wait for their
    next attempt due at once. No lease is taken, and services that a person paused are not spared.

    :raises DrainError: an event died and ``raise_on_dead`` is set; or ``max_rounds`` were not enough, as with handlers
        that publish without end.
    """
    workshop = _Workshop(routes_of(services))
    last_progress: tuple[int, ...] | None = None
    with closing(workshop.watchdog), workshop.collecting_dead():
        for _ in range(max_rounds):
            moved = workshop.work()
            if raise_on_dead and workshop.dead:
                raise DrainError("; ".join(map(str, workshop.dead)))
            if moved:
                continue
            # Behind a parked key the same rows would be hurried, and put back, for ever.
            progress = workshop.progress()
            if not ignore_backoff or progress == last_progress or not workshop.hurry():
                return workshop.drained()
            last_progress = progress
    raise DrainError(f"events were still due after {max_rounds} rounds; so far: {workshop.drained()}")


class _AllShards(ShardLeases):
    """Every shard, without asking: a test is alone with its database."""

    def __init__(self) -> None:
        self.held = frozenset(range(SHARD_COUNT))

    @property
    def due(self) -> bool:
        return False

    def release(self) -> None:
        """Hold nothing in the database."""

    def forget(self) -> None:
        """Hold nothing in the database."""


class _Service:
    """Relay and consumer of one service, worked by hand."""

    def __init__(self, route: ServiceRoute, broker: MemoryBroker, watchdog: Watchdog) -> None:
        configured = outbox_settings()
        self.repository = repository_of(route.service)
        self.relay = Relay(
            repository=self.repository,
            broker=broker,
            client_id="drain",
            leases=_AllShards(),
            parks_key=EventPolicies(contracts, configured).parks_key,
            options=configured.relay,
            reference_bytes=configured.reference_bytes,
            clock=time.monotonic,
        )
        self.consumer = build_consumer(route, broker, watchdog=watchdog)
        self._subscription = broker.subscribe(route, client_id="drain")

    def work(self) -> bool:
        """Send all that is due and handle all that came; say whether anything came."""
        while self.relay.step():
            pass
        came = False
        while records := self._subscription.receive(max_records=_BATCH, timeout=_AT_ONCE):
            if left := self.consumer.handle(records):
                raise DrainError(
                    f"{len(left)} events came to no end: another connection has locked them, or see the log"
                )
            self._subscription.commit(records)
            came = True
        return came

    def hurry(self) -> bool:
        """Make rows in a back-off due; say whether there were any."""
        ids = StatusRows(self.repository.route, self.repository.foreign_types).not_due()
        return self.repository.wait(ids, until=self.repository.now() - timedelta(seconds=1)) > 0


class _Workshop:
    """All services that a ``drain`` works for, over one broker in memory."""

    def __init__(self, routes: Sequence[ServiceRoute]) -> None:
        broker = MemoryBroker()
        self.watchdog = Watchdog(grace=timedelta(seconds=outbox_settings().consumer.hung_handler_grace_seconds))
        self._services = {route.service: _Service(route, broker, self.watchdog) for route in routes}
        self.dead: list[DeadEvent] = []

    def work(self) -> bool:
        came = [service.work() for service in self._services.values()]
        return any(came)

    def hurry(self) -> bool:
        hurried = [service.hurry() for service in self._services.values()]
        return any(hurried)

    def progress(self) -> tuple[int, ...]:
        """Return what grows with every event that got on, and not with one that was only put back."""
        totals = [service.consumer.totals for service in self._services.values()]
        return tuple(each.consumed + each.retried + each.dead + each.rejected for each in totals)

    def drained(self) -> Drained:
        totals = [service.consumer.totals for service in self._services.values()]
        return Drained(
            consumed=sum(each.consumed for each in totals),
            retried=sum(each.retried for each in totals),
            waited=sum(each.waited for each in totals),
            rejected=sum(each.rejected for each in totals),
            dead=tuple(self.dead),
        )

    @contextmanager
    def collecting_dead(self) -> Iterator[None]:
        """Keep what dies in relay or consumer, with the reason."""

        def collect(sender: object, *, outbox_id: int, reason: str, **_: object) -> None:
            if sender in self._services:
                self.dead.append(DeadEvent(str(sender), outbox_id, reason))

        for signal in (signals.refused, signals.buried):
            signal.connect(collect, weak=False)
        try:
            yield
        finally:
            for signal in (signals.refused, signals.buried):
                signal.disconnect(collect)
