"""Helpers for the tests of a project that publishes and handles events.

What was published, and that the right events were::

    def test_order_tells_the_warehouse(self):
        with captured_events() as events:
            place_order(order)
        self.assertEqual(events, [("order.placed", OrderPlaced(order_id="7"))])

What the handlers make of it, at once and in this process, without Kafka and without a worker::

    def test_warehouse_reserves(self):
        place_order(order)
        drain()
        self.assertTrue(Reservation.objects.filter(order_id="7").exists())

Both work inside the transaction of Django's ``TestCase``, as they look at rows on the test's own connection. ``drain``
carries events through relay and consumer as they run for real, over a broker in memory; the configured broker is not
touched. An event that fails waits for its next attempt: ``drain(ignore_backoff=True)`` brings it at once, until it
succeeds or is dead. A test that wants no dead event says ``drain(raise_on_dead=True)``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple, TypeVar, overload

import msgspec
from django.db.models import QuerySet

from outbox import signals
from outbox.brokers.memory import MemoryBroker
from outbox.conf import outbox_settings
from outbox.consumer.watchdog import Watchdog
from outbox.coordination.leases import ShardLeases, Switches
from outbox.declarations.contracts import contracts
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import DrainError
from outbox.fields import SHARD_COUNT
from outbox.lifecycle import Status
from outbox.models import OutboxMessage
from outbox.registry.catalog import repository_of, service_models
from outbox.registry.policies import EventPolicies
from outbox.relay.loop import Relay
from outbox.wire.envelope import decode_envelope
from outbox.workers.build import build_consumer, routes_of

__all__ = ["CapturedEvent", "CapturedEvents", "DeadEvent", "DrainError", "Drained", "captured_events", "drain"]

P = TypeVar("P", bound=msgspec.Struct)

_AT_ONCE: Final = timedelta(0)
_BATCH: Final = 500


class CapturedEvent(NamedTuple):
    """A published event; equal to the plain pair ``(event_type, payload)``."""

    event_type: str
    payload: msgspec.Struct


class CapturedEvents(Sequence[CapturedEvent]):
    """The events published since it was made: service by service, each in the order of publication.

    It reads the outbox tables whenever it is looked at, so a publish that was rolled back is not among them; after the
    end of its ``with`` block it stays as it was there.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._routes = routes_of(services)
        self._before = {route.service: _last_id(route) for route in self._routes}
        self._kept: list[CapturedEvent] | None = None

    def keep(self) -> None:
        """Stay as it is now."""
        self._kept = self._read()

    def of(self, payload_type: type[P]) -> list[P]:
        """Return the payloads of one contract."""
        return [event.payload for event in self if isinstance(event.payload, payload_type)]

    @property
    def event_types(self) -> list[str]:
        """Return the event type of each."""
        return [event.event_type for event in self]

    @overload
    def __getitem__(self, index: int) -> CapturedEvent: ...
    @overload
    def __getitem__(self, index: slice) -> list[CapturedEvent]: ...
    def __getitem__(self, index: int | slice) -> CapturedEvent | list[CapturedEvent]:
        return self._events[index]

    def __len__(self) -> int:
        return len(self._events)

    def __eq__(self, other: object) -> bool:
        return self._events == (list(other) if isinstance(other, Sequence) else other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return repr(self._events)

    @property
    def _events(self) -> list[CapturedEvent]:
        return self._read() if self._kept is None else self._kept

    def _read(self) -> list[CapturedEvent]:
        return [
            _captured(row)
            for route in self._routes
            for row in _rows(route).filter(pk__gt=self._before[route.service]).order_by("pk")
        ]


@contextmanager
def captured_events(*services: str) -> Iterator[CapturedEvents]:
    """Give the events that are published inside the block, of the named services or of all."""
    events = CapturedEvents(services)
    yield events
    events.keep()


def _captured(row: OutboxMessage) -> CapturedEvent:
    envelope = decode_envelope(row.payload, outbox_id=row.pk, event_type=row.event_type)
    contract = contracts.get(row.event_type)
    return CapturedEvent(row.event_type, contract.decode(envelope.payload, version=envelope.event_version))


def _last_id(route: ServiceRoute) -> int:
    last = _rows(route).order_by("-pk").values_list("pk", flat=True).first()
    return last or 0


def _rows(route: ServiceRoute) -> QuerySet[OutboxMessage]:
    return QuerySet(service_models()[route.service], using=route.database)


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
        self.switches = Switches()
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
        route = self.repository.route
        now = self.repository.now()
        rows = _rows(route).filter(status=Status.PENDING, next_retry_at__gt=now)
        ids = list(rows.exclude(event_type__in=self.repository.foreign_types).values_list("pk", flat=True))
        return self.repository.wait(ids, until=now - timedelta(seconds=1)) > 0


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
