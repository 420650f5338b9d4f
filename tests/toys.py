"""A toy service for tests: events with every kind of handler, which fail as the test says and note their effects.

What a handler does is a row in ``toy_effects``, written in the transaction that marks its event consumed. A failure is
planned by (outbox id, attempt) and not by the number of calls: a batch may be done again for somebody else's failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
from django.db import connections, models

from outbox import Delivery, OnDead, RetryPolicy, event, handles, upcasts
from outbox.coordination.shutdown import StopFlag
from outbox.declarations.contracts import ContractRegistry
from outbox.declarations.handlers import HandlerRegistry
from outbox.fields import KeyField

SERVICE = "agent"

NOTE = "toy.note"
"""One event a call."""
OTHER = "toy.other"
"""Another type with a handler of its own."""
BULK = "toy.bulk"
"""A list of events a call."""
PARKED = "toy.parked"
"""Its death holds back its key."""
PARKED_BULK = "toy.parked.bulk"
UNHANDLED = "toy.unhandled"
"""Has a contract and no handler."""

HANDLED = (NOTE, OTHER, BULK, PARKED, PARKED_BULK)

NO_JITTER = RetryPolicy(base=timedelta(seconds=10), cap=timedelta(minutes=10), max_attempts=20, jitter=0.0)


class ToyEffect(models.Model):
    """What a handler did."""

    outbox_id = models.BigIntegerField()
    event_type = models.CharField(max_length=64)
    message_key = KeyField(max_length=128)
    number = models.BigIntegerField()
    attempt = models.IntegerField()

    class Meta:
        app_label = "toys"
        db_table = "toy_effects"

    def __str__(self) -> str:
        return f"{self.event_type} #{self.outbox_id}"


class ManualClock:
    """Monotonic seconds that pass only when told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class RecordingStop(StopFlag):
    """A stop flag whose pauses take no time: a loop that waits goes on at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[timedelta] = []

    def wait(self, pause: timedelta, *, until: object = None) -> bool:
        self.pauses.append(pause)
        return self.is_set


@dataclass(frozen=True, slots=True)
class Failing:
    """Fail the attempts up to ``until_attempt`` with what ``error`` makes of the delivery, unless that is None."""

    error: Callable[[Delivery[Any]], BaseException | None]
    until_attempt: int


@dataclass(slots=True)
class Toys:
    """Registries of their own, and what the handlers are to do."""

    contracts: ContractRegistry = field(default_factory=ContractRegistry)
    handlers: HandlerRegistry = field(default_factory=HandlerRegistry)
    plans: dict[int, Failing] = field(default_factory=dict)
    calls: list[tuple[int, ...]] = field(default_factory=list)
    """The outbox ids of each call, whatever became of it."""
    before: Callable[[Sequence[Delivery[Any]]], None] | None = None
    """Called by every handler before it writes."""
    types: dict[str, type[msgspec.Struct]] = field(default_factory=dict)
    time_limits: dict[str, timedelta] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for event_type in (*HANDLED, UNHANDLED):
            on_dead = OnDead.PARK if event_type in {PARKED, PARKED_BULK} else OnDead.CONTINUE
            payload_type = msgspec.defstruct(
                f"Toy_{event_type.replace('.', '_')}", [("key", str), ("number", int)], frozen=True
            )
            self.types[event_type] = event(
                event_type, service=SERVICE, version="v2", key="key", on_dead=on_dead, registry=self.contracts
            )(payload_type)
            upcasts(event_type, from_version="v1", to_version="v2", registry=self.contracts)(_number_of_v1)
        for event_type in (NOTE, OTHER, PARKED):
            self._handle(event_type, batch=False)
        for event_type in (BULK, PARKED_BULK):
            self._handle(event_type, batch=True)

    def fail(
        self,
        outbox_id: int,
        error: BaseException | Callable[[Delivery[Any]], BaseException | None],
        *,
        times: int = 10**6,
    ) -> None:
        """Make the first ``times`` attempts of a row raise ``error``."""
        make = (lambda _delivery: copy(error)) if isinstance(error, BaseException) else error
        self.plans[outbox_id] = Failing(make, times)

    def mend(self, outbox_id: int) -> None:
        """Let the row succeed from now on."""
        self.plans.pop(outbox_id, None)

    def parks_key(self, event_type: str) -> bool:
        return event_type in {PARKED, PARKED_BULK}

    def time_limit(self, event_type: str) -> timedelta:
        return self.time_limits.get(event_type, timedelta(seconds=60))

    def retry_policy(self, event_type: str) -> RetryPolicy:
        return NO_JITTER

    def _handle(self, event_type: str, *, batch: bool) -> None:
        def one(delivery: Delivery[Any]) -> None:
            self._act([delivery])

        def many(deliveries: list[Delivery[Any]]) -> None:
            self._act(deliveries)

        handles(self.types[event_type], batch=batch, registry=self.handlers, contract_registry=self.contracts)(
            many if batch else one
        )

    def _act(self, deliveries: Sequence[Delivery[Any]]) -> None:
        self.calls.append(tuple(delivery.outbox_id for delivery in deliveries))
        if self.before is not None:
            self.before(deliveries)
        written: list[Delivery[Any]] = []
        try:
            for delivery in deliveries:
                plan = self.plans.get(delivery.outbox_id)
                error = plan.error(delivery) if plan is not None and delivery.attempt <= plan.until_attempt else None
                if error is not None:
                    raise error
                written.append(delivery)
        finally:
            # What went before the failure is written too: it has to be rolled back with it.
            _write(written)


def effects(alias: str) -> list[ToyEffect]:
    """Return all effects in the order in which they were made."""
    return list(ToyEffect.objects.using(alias).order_by("id"))


def effect_ids(alias: str, *, key: str | None = None) -> list[int]:
    """Return the outbox ids of the effects in the order in which they were made."""
    return [effect.outbox_id for effect in effects(alias) if key is None or effect.message_key == key]


def _write(deliveries: Iterable[Delivery[Any]]) -> None:
    written = list(deliveries)
    if not written:
        return
    values: list[Any] = []
    for each in written:
        values += [each.outbox_id, each.event_type, each.message_key, each.payload.number, each.attempt]
    with connections[written[0].database].cursor() as cursor:
        cursor.execute(
            "INSERT INTO toy_effects (outbox_id, event_type, message_key, number, attempt) VALUES "
            + ", ".join(["(%s, %s, %s, %s, %s)"] * len(written)),
            values,
        )


def _number_of_v1(payload: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had the number as a text under another name."""
    return {"key": payload["key"], "number": int(payload["n"])}
