"""Builds relays and consumers from settings, and runs one on each thread until asked to stop."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from django.db import connections

from outbox.brokers import load_backend
from outbox.brokers.base import Broker, TopicState
from outbox.brokers.table import TableBroker
from outbox.conf import OutboxSettings, RelayOptions, outbox_settings
from outbox.consumer.backstop import Backstop
from outbox.consumer.bounded import run_bounded
from outbox.consumer.loop import Consumer
from outbox.consumer.processing import BatchProcessor
from outbox.consumer.report import ConsumerTotals
from outbox.consumer.takeovers import Takeovers
from outbox.consumer.watchdog import Watchdog
from outbox.coordination.connection_backoff import ConnectionBackoff
from outbox.coordination.heartbeat import Heartbeat
from outbox.coordination.leases import CONSUMER, RELAY, Presence, ShardLeases, new_worker_id
from outbox.coordination.shutdown import StopFlag
from outbox.coordination.wakeups import open_wake_ups
from outbox.coordination.worker_loop import WorkerLoop
from outbox.declarations.contracts import contracts
from outbox.declarations.handlers import handlers
from outbox.declarations.routes import ServiceRoute
from outbox.exceptions import ConfigurationError, TopicNotReadyError
from outbox.registry.catalog import relay_hints, repository_of, route_registry, wake_up_place
from outbox.registry.policies import EventPolicies
from outbox.relay.confirmations import Hand, OtherHands, OwnHand
from outbox.relay.in_flight import RelayTotals
from outbox.relay.loop import Relay
from outbox.storage.rejections import RejectionStore
from outbox.storage.sessions import bound_sessions
from outbox.workers import embedded
from outbox.workers.threads import WorkerRun, run_together

_LET_GO_S: Final = 5.0
"""How long a process that ends over a handler may take to say that its other consumers are not to blame."""


_TOPICS_PAUSE: Final = timedelta(milliseconds=250)


def routes_of(services: Sequence[str]) -> list[ServiceRoute]:
    """Return the routes of ``services``, of all services when none is named.

    :raises UnknownServiceError: nobody declared one of them.
    """
    catalog = route_registry().catalog
    return [catalog.route(service) for service in services] if services else list(catalog)


@contextmanager
def open_broker() -> Iterator[Broker]:
    """Give the configured broker, closed at the end. Nothing connects before it is used.

    :raises ConfigurationError: the backend is unknown or its options are wrong.
    """
    configured = outbox_settings().broker
    backend = load_backend(configured.backend)
    options: dict[str, Any] = dict(configured.options)
    if issubclass(backend, TableBroker):
        options["open_rows"] = embedded.open_rows
    try:
        broker = backend(**options)
    except TypeError as error:
        raise ConfigurationError(f"OUTBOX['BROKER']['OPTIONS'] do not fit {configured.backend!r}: {error}") from error
    try:
        yield broker
    finally:
        broker.close()


def build_relay(route: ServiceRoute, broker: Broker, *, hand: Hand | None = None) -> Relay:
    """Return the relay of one service.

    ``hand`` does its marking: by default others, but for SQLite, which has one writer at a time.
    """
    configured = outbox_settings()
    worker_id = new_worker_id()
    presence = _presence(route, RELAY, worker_id, configured)
    interval = timedelta(seconds=configured.leases.heartbeat_seconds)
    leases = ShardLeases(presence, heartbeat=interval, clock=time.monotonic)
    return Relay(
        repository=repository_of(route.service),
        broker=broker,
        client_id=_client_id(route, RELAY, worker_id),
        leases=leases,
        heartbeat=Heartbeat(presence, interval=interval, renew=leases.renew),
        parks_key=EventPolicies(contracts, configured).parks_key,
        options=configured.relay,
        reference_bytes=configured.reference_bytes,
        clock=time.monotonic,
        hand=hand or _hand_for(route),
        wake_ups=lambda: open_wake_ups(wake_up_place(), route.service),
    )


def build_consumer(route: ServiceRoute, broker: Broker, *, watchdog: Watchdog | None = None) -> Consumer:
    """Return the consumer of one service; ``watchdog`` is that of the process."""
    configured = outbox_settings()
    worker_id = new_worker_id()
    presence = _presence(route, CONSUMER, worker_id, configured)
    heartbeat = Heartbeat(presence, interval=timedelta(seconds=configured.leases.heartbeat_seconds))
    policies = EventPolicies(contracts, configured)
    return Consumer(
        route=route,
        processor=BatchProcessor(
            repository=repository_of(route.service),
            rejections=RejectionStore(route.service, route.database),
            contracts=contracts,
            handlers=handlers,
            options=configured.consumer,
            retry_policy=policies.retry,
            parks_key=policies.parks_key,
            time_limit=policies.time_limit,
            rand=random.random,
            watchdog=watchdog or Watchdog(grace=_grace(configured)),
            witness=heartbeat,
            redeliver_after=(
                timedelta(seconds=configured.relay.redeliver_after_seconds)
                if broker.capabilities.keeps_records
                else None
            ),
            wake_relays=relay_hints().giver(route.service),
            on_hung_noted=heartbeat.close,
        ),
        subscribe=lambda: broker.subscribe(route, client_id=_client_id(route, CONSUMER, worker_id)),
        options=configured.consumer,
        heartbeat=heartbeat,
        takeovers=Takeovers(presence, records=configured.consumer.batch_size),
        clock=time.monotonic,
    )


def run_relays(routes: Sequence[ServiceRoute], broker: Broker, stop: StopFlag, *, once: bool) -> dict[str, RelayTotals]:
    """Run the relay of each route on a thread of its own: a slow or broken service holds up no other."""
    relays = {route.service: build_relay(route, broker) for route in routes}
    idle = _relay_idle(outbox_settings().relay)
    runs = {
        route.service: WorkerRun(_bound(relays[route.service].run, stop, once=once), using=route.database, idle=idle)
        for route in routes
    }
    return run_together(runs, stop)


def run_consumers(
    routes: Sequence[ServiceRoute],
    broker: Broker,
    stop: StopFlag,
    *,
    once: bool = False,
    max_events: int | None = None,
) -> dict[str, ConsumerTotals]:
    """Run the consumer of each route on a thread of its own.

    A handler that does not return ends the process, with ``HUNG_EXIT_CODE``; what other services have at work is let go
    before, as they are not to blame. One that keeps the interpreter's lock ends it by ``BACKSTOP_SIGNAL``.
    """
    consumers: list[Consumer] = []

    def end_process(code: int) -> None:
        run_bounded([consumer.let_go for consumer in consumers], timeout_s=_LET_GO_S)
        os._exit(code)

    configured = outbox_settings()
    watchdog = Watchdog(grace=_grace(configured), end_process=end_process, backstop=Backstop())
    policies = EventPolicies(contracts, configured)
    runs: dict[str, WorkerRun[ConsumerTotals]] = {}
    for route in routes:
        consumer = build_consumer(route, broker, watchdog=watchdog)
        consumers.append(consumer)
        is_drained = _bound(topic_is_drained, route, broker) if once else None
        run = _bound(consumer.run, stop, max_events=max_events, is_drained=is_drained)
        runs[route.service] = WorkerRun(run, using=route.database, idle=policies.longest_call(route.service))
    try:
        return run_together(runs, stop)
    finally:
        watchdog.close()


def _grace(configured: OutboxSettings) -> timedelta:
    return timedelta(seconds=configured.consumer.hung_handler_grace_seconds)


def topic_is_drained(route: ServiceRoute, broker: Broker) -> bool:
    """Say whether the group of ``route`` has nothing left to receive.

    :raises BrokerUnavailableError: the broker is away.
    """
    if broker.capabilities.keeps_records:
        positions = broker.positions(route)
        return positions is None or positions.lag == 0
    return not repository_of(route.service).published(shards=None, limit=1)


def wait_for_topics(
    routes: Sequence[ServiceRoute], broker: Broker, stop: StopFlag, *, create: bool, timeout: timedelta
) -> list[TopicState]:
    """Wait until every topic exists and has a leader; an unreachable broker is waited for without end.

    :raises TopicNotReadyError: the broker answers, and a topic is still not there after ``timeout``.
    """
    ready: list[TopicState] = []
    if not routes:
        return ready
    deadline: float | None = None

    def step() -> bool:
        nonlocal ready, deadline
        states = broker.create_topics(routes) if create else broker.topics(routes)
        missing = [state for state in states if not state.exists or state.problem]
        if not missing:
            ready = states
            return False
        deadline = deadline or time.monotonic() + timeout.total_seconds()
        if time.monotonic() >= deadline:
            named = ", ".join(f"{state.topic}: {state.problem or 'does not exist'}" for state in missing)
            raise TopicNotReadyError(
                f"not ready after {timeout.total_seconds():.0f} s: {named}. Create it with `manage.py outbox_topics "
                f"--create`, or start the worker with --create-topics."
            )
        return True

    WorkerLoop(
        step=step,
        using=routes[0].database,
        backoff=ConnectionBackoff(",".join(route.service for route in routes), "start"),
        pause=lambda _: _TOPICS_PAUSE,
        is_drained=lambda: True,
    ).run(stop)
    return ready


def _hand_for(route: ServiceRoute) -> Hand:
    if connections[route.database].vendor == "sqlite":
        return OwnHand()
    bound = _bound(bound_sessions, route.database, idle=_relay_idle(outbox_settings().relay))
    return OtherHands(f"outbox-{route.service}-marks", prepare=bound)


def _relay_idle(options: RelayOptions) -> timedelta:
    """Return for how long a relay's session may say nothing: twice the longest pause or wait for the broker, and some.

    It is 70 s by default.
    """
    longest_s = max(options.send_timeout_seconds, options.max_poll_interval_ms / 1000)
    return timedelta(seconds=2 * longest_s + 10)


def _presence(route: ServiceRoute, role: str, worker_id: str, configured: OutboxSettings) -> Presence:
    return Presence(
        service=route.service,
        role=role,
        worker_id=worker_id,
        using=route.database,
        ttl=timedelta(seconds=configured.leases.ttl_seconds),
    )


def _client_id(route: ServiceRoute, role: str, worker_id: str) -> str:
    return f"{outbox_settings().namespace}-{route.service}-{role}-{worker_id}".replace(":", "-")


def _bound(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: function(*args, **kwargs)
