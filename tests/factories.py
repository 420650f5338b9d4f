"""Makes what tests start from: rows in any state, the records that belong to them, relays and consumers around them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.db import connections, transaction

from agent_events.agent.models import AgentOutboxMessage
from outbox.brokers.base import Broker, IncomingRecord, Subscription
from outbox.conf import ConsumerOptions, RelayOptions
from outbox.consumer.loop import Consumer
from outbox.consumer.processing import BatchProcessor
from outbox.consumer.takeovers import Takeovers
from outbox.consumer.watchdog import Watchdog
from outbox.coordination.heartbeat import Heartbeat, NullHeartbeat, Witness
from outbox.coordination.leases import CONSUMER, RELAY, Presence, ShardLeases
from outbox.coordination.wakeups import WakeUpSocket
from outbox.declarations.backoff import RetryPolicy
from outbox.lifecycle import Status
from outbox.models import ShardLease, Worker
from outbox.registry.catalog import repository_of
from outbox.relay.confirmations import Hand
from outbox.relay.loop import Relay
from outbox.storage.dialects import dialect_of, from_db
from outbox.storage.pause_flags import Switches
from outbox.storage.rejections import RejectionStore
from outbox.storage.repository import OutboxRepository
from outbox.wire.envelope import Envelope, encode_envelope, encode_message
from tests.toys import NOTE, SERVICE, ManualClock, Toys

TABLE = "agent_outbox_messages"
TTL = timedelta(seconds=60)
HEARTBEAT = timedelta(seconds=10)

WATCHDOG = Watchdog(grace=timedelta(seconds=30))

_offsets = itertools.count()
_workers = itertools.count(1)


# --- rows --------------------------------------------------------------------------------------------------------


def envelope(
    event_type: str = NOTE, *, payload: Any = None, version: str = "v2", event_id: str = "e-1", key: str = "k"
) -> Envelope:
    """Return an envelope with ``payload`` as JSON."""
    return Envelope(
        event_id=event_id,
        event_type=event_type,
        event_version=version,
        aggregate_id=key,
        payload=msgspec.Raw(msgspec.json.encode({"key": key, "number": 1} if payload is None else payload)),
    )


def row(
    alias: str,
    *,
    key: str = "k",
    event_type: str = NOTE,
    number: int = 1,
    payload: Any = None,
    stored: str | None = None,
    version: str = "v2",
    due_in: timedelta | None = None,
    **columns: Any,
) -> int:
    """Insert a row and return its id; ``stored`` replaces the whole payload column, ``due_in`` counts from now."""
    if stored is None:
        content = {"key": key, "number": number} if payload is None else payload
        stored = encode_envelope(envelope(event_type, payload=content, version=version, key=key)).decode()
    if due_in is not None:
        columns["next_retry_at"] = database_now(alias) + due_in
    made = AgentOutboxMessage.objects.using(alias).create(
        event_type=event_type,
        service_name=columns.pop("service_name", SERVICE),
        topic="smartflow.agent.outbox",
        message_key=key,
        payload=stored,
        **columns,
    )
    return int(made.pk)


def rows(alias: str, count: int, *, key: str | Callable[[int], str] = "k", **columns: Any) -> list[int]:
    """Insert ``count`` rows in order; ``key`` may be made from the row's number (from 0)."""
    with transaction.atomic(using=alias):
        return [
            row(alias, key=key(number) if callable(key) else key, number=number, **columns) for number in range(count)
        ]


def get(alias: str, row_id: int) -> AgentOutboxMessage:
    """Return a row as it is now."""
    return AgentOutboxMessage.objects.using(alias).get(pk=row_id)


def statuses(alias: str) -> dict[int, str]:
    """Return the status of every row."""
    return dict(AgentOutboxMessage.objects.using(alias).order_by("id").values_list("id", "status"))


def status_counts(alias: str) -> dict[str, int]:
    """Return how many rows each status has."""
    counts: dict[str, int] = {}
    for status in statuses(alias).values():
        counts[status] = counts.get(status, 0) + 1
    return counts


def change(alias: str, row_ids: int | Iterable[int], **columns: Any) -> None:
    """Set columns behind everybody's back, as another program or a crash at a bad moment would."""
    ids = [row_ids] if isinstance(row_ids, int) else list(row_ids)
    AgentOutboxMessage.objects.using(alias).filter(pk__in=ids).update(**columns)


def make_due(alias: str) -> None:
    """Let all pauses of pending rows end now."""
    past = database_now(alias) - timedelta(seconds=1)
    AgentOutboxMessage.objects.using(alias).filter(status=Status.PENDING, next_retry_at__gt=past).update(
        next_retry_at=past
    )


def let_get_stuck(alias: str, row_ids: Iterable[int], *, by: timedelta) -> None:
    """Make published rows look as if they had been published ``by`` earlier."""
    for each in AgentOutboxMessage.objects.using(alias).filter(pk__in=list(row_ids)):
        change(alias, each.pk, published_at=each.published_at - by, next_retry_at=each.next_retry_at - by)


def database_now(alias: str) -> datetime:
    """Return the database's clock."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {dialect_of(connection).now}", [])
        return from_db(cursor.fetchone()[0])


# --- records -----------------------------------------------------------------------------------------------------


def record(
    value: bytes | None, *, key: str = "k", partition: int = 0, offset: int | None = None, topic: str | None = None
) -> IncomingRecord:
    """Return a record with any value."""
    return IncomingRecord(
        topic=topic or "smartflow.agent.outbox",
        partition=partition,
        offset=next(_offsets) if offset is None else offset,
        key=key.encode(),
        value=value,
    )


def record_of(alias: str, row_id: int, *, service: str = SERVICE, **place: Any) -> IncomingRecord:
    """Return the record that the relay sends for a row as it is now."""
    found = get(alias, row_id)
    value = encode_message(
        envelope(found.event_type, key=found.message_key), outbox_id=row_id, service=service, by_reference=True
    )
    return record(value, key=found.message_key, **place)


def records_of(alias: str, row_ids: Iterable[int]) -> list[IncomingRecord]:
    """Return the records of rows, in that order on one partition."""
    return [record_of(alias, row_id) for row_id in row_ids]


# --- workers -----------------------------------------------------------------------------------------------------


def repository(*, foreign_types: tuple[str, ...] = ()) -> OutboxRepository:
    """Return the agent's repository, on the alias that the settings say."""
    return OutboxRepository(repository_of(SERVICE).route, foreign_types)


class BeatenLeases(ShardLeases):
    """Leases of a worker without a heartbeat of its own: each refresh beats first."""

    switches = Switches()

    def refresh(self) -> frozenset[int]:
        self.switches = self.presence.beat()
        return super().refresh()


class BeatenByHand(NullHeartbeat):
    """The heartbeat of a worker whose ``leases`` beat."""

    def __init__(self, leases: ShardLeases) -> None:
        self._leases = leases

    @property
    def switches(self) -> Switches:
        return getattr(self._leases, "switches", Switches())


def leases(alias: str, clock: Callable[[], float], *, role: str = RELAY, worker_id: str = "") -> BeatenLeases:
    """Return the leases of a new worker."""
    presence = Presence(
        service=SERVICE, role=role, worker_id=worker_id or f"worker-{next(_workers):03}", using=alias, ttl=TTL
    )
    return BeatenLeases(presence, heartbeat=HEARTBEAT, clock=clock)


def expire(alias: str, worker_id: str) -> None:
    """Let a worker's leases run out, as they do when it is not heard of for their time."""
    past = database_now(alias) - timedelta(seconds=1)
    ShardLease.objects.using(alias).filter(owner=worker_id).update(expires_at=past)
    Worker.objects.using(alias).filter(pk=worker_id).update(seen_at=past - TTL)


def relay(
    alias: str,
    broker: Broker,
    toys: Toys,
    clock: Callable[[], float],
    *,
    foreign_types: tuple[str, ...] = (),
    reference_bytes: int = 1000,
    worker_leases: ShardLeases | None = None,
    hand: Hand | None = None,
    heartbeat: Heartbeat | NullHeartbeat | None = None,
    wake_ups: Callable[[], WakeUpSocket | None] = lambda: None,
    **options: Any,
) -> Relay:
    """Return a relay of the agent service; ``options`` go to ``RelayOptions``."""
    worker_leases = worker_leases or leases(alias, clock)
    return Relay(
        repository=repository(foreign_types=foreign_types),
        broker=broker,
        client_id=f"relay-{next(_workers):03}",
        leases=worker_leases,
        parks_key=toys.parks_key,
        options=RelayOptions(**options),
        reference_bytes=reference_bytes,
        clock=clock,
        hand=hand,
        heartbeat=heartbeat or BeatenByHand(worker_leases),
        wake_ups=wake_ups,
    )


def consumer(
    alias: str,
    toys: Toys,
    *,
    broker: Broker | None = None,
    subscribe: Callable[[], Subscription] | None = None,
    clock: Callable[[], float] | None = None,
    foreign_types: tuple[str, ...] = (),
    retry_policy: Callable[[str], RetryPolicy] | None = None,
    redeliver_after: timedelta | None = None,
    wake_relays: Callable[[], None] = lambda: None,
    heartbeat: Heartbeat | NullHeartbeat | None = None,
    witness: Witness | None = None,
    watchdog: Watchdog | None = None,
    **options: Any,
) -> Consumer:
    """Return a consumer of the agent service; ``options`` go to ``ConsumerOptions``."""
    agent = repository(foreign_types=foreign_types)
    worker_id = f"consumer-{next(_workers):03}"

    def subscribe_to_broker() -> Subscription:
        assert broker is not None, "this consumer was built without a broker: use handle()"
        return broker.subscribe(agent.route, client_id=worker_id)

    consumer_options = ConsumerOptions(**({"poll_interval_ms": 1} | options))
    presence = Presence(service=SERVICE, role=CONSUMER, worker_id=worker_id, using=alias, ttl=TTL)
    heartbeat = heartbeat or Heartbeat(presence, interval=HEARTBEAT)
    return Consumer(
        route=agent.route,
        processor=BatchProcessor(
            repository=agent,
            rejections=RejectionStore(SERVICE, alias),
            contracts=toys.contracts,
            handlers=toys.handlers,
            options=consumer_options,
            retry_policy=retry_policy or toys.retry_policy,
            parks_key=toys.parks_key,
            time_limit=toys.time_limit,
            rand=lambda: 0.0,
            watchdog=watchdog or WATCHDOG,
            witness=witness or heartbeat,
            redeliver_after=redeliver_after,
            wake_relays=wake_relays,
        ),
        subscribe=subscribe or subscribe_to_broker,
        options=consumer_options,
        heartbeat=heartbeat,
        takeovers=Takeovers(presence, records=consumer_options.batch_size),
        clock=clock or ManualClock(),
    )
