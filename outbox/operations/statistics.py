"""How a service is doing, for the admin and for ``outbox_status``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from outbox.conf import outbox_settings
from outbox.coordination.leases import CONSUMER, RELAY
from outbox.declarations.contracts import contracts
from outbox.declarations.routes import RouteRegistry, ServiceRoute
from outbox.lifecycle import Status
from outbox.models import Worker
from outbox.registry.policies import EventPolicies
from outbox.storage.lease_rows import LeaseRows
from outbox.storage.pause_flags import switches_of
from outbox.storage.rejections import OtherInstallation, RejectionStore
from outbox.storage.status_rows import COUNT_CAP, Count, StatusRows
from outbox.storage.worker_rows import WorkerRows

HUNG_AFTER: Final = timedelta(minutes=1)
"""Beyond the longest that a worker's loop may wait for a broker or a handler."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker that was seen within a lease's time."""

    worker_id: str
    host: str
    pid: int
    started_at: datetime
    shards: int
    """Shards of keys that it leases; 0 for a consumer whose broker shares out the work itself."""
    moved_ago: timedelta | None = None
    """How long its loop had not moved when it was last seen; None for one that does not say."""
    is_hung: bool = False
    """That is longer than anything that it may wait for."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service at one moment."""

    route: ServiceRoute
    event_types: tuple[tuple[str, str], ...]
    """(event type, current version)."""
    counts: dict[Status, Count]
    """Rows by status; of the dead ones those that are open: a person has not dismissed (given up) them."""
    dismissed: Count
    """Dead rows that a person has dismissed."""
    parks_a_key: bool
    """An open dead row holds back the later events of its key."""
    open_rejected: Count
    other_installations: tuple[OtherInstallation, ...]
    """Whose records came, the last one first."""
    foreign: Count
    """Unfinished rows of event types that other services own."""
    oldest_due_age: timedelta | None
    """Age, since its creation, of the row that has been due the longest; None when nothing is due."""
    relays: tuple[WorkerStatus, ...]
    consumers: tuple[WorkerStatus, ...]
    relay_paused: bool
    consumer_paused: bool
    ahead_of_time: Count
    """Pending rows that a session in another time zone wrote, so that they are not due."""


def service_status(
    route: ServiceRoute, registry: RouteRegistry, *, ttl: timedelta, cap: int = COUNT_CAP
) -> ServiceStatus:
    """Return how the service of ``route`` is doing; a worker counts as alive for ``ttl`` after its last beat."""
    configured = outbox_settings()
    longest_call = EventPolicies(contracts, configured).longest_call(route.service)
    rows = StatusRows(route, registry.foreign_types(route.service))
    rejections = RejectionStore(route.service, route.database)
    switches = switches_of(route.service, route.database)
    counts: dict[Status, Count] = {status: rows.count(status, cap=cap) for status in Status if status != Status.DEAD}
    counts[Status.DEAD], dismissed = rows.count_dead(cap=cap)
    return ServiceStatus(
        route=route,
        event_types=tuple((contract.event_type, contract.version) for contract in contracts.of_service(route.service)),
        counts=counts,
        dismissed=dismissed,
        open_rejected=rejections.count_open(cap=cap),
        other_installations=rejections.other_installations(topic=route.topic),
        parks_a_key=rows.parks_a_key(cap=cap),
        foreign=rows.count_foreign(cap=cap),
        oldest_due_age=rows.oldest_due_age(),
        relays=_workers(route, RELAY, RELAY, ttl, waits=timedelta(seconds=configured.relay.send_timeout_seconds)),
        consumers=_workers(route, CONSUMER, f"{CONSUMER}-shards", ttl, waits=longest_call),
        relay_paused=switches.relay_paused,
        consumer_paused=switches.consumer_paused,
        ahead_of_time=rows.count_ahead_of_time(cap=cap),
    )


def _workers(
    route: ServiceRoute, role: str, lease_role: str, ttl: timedelta, *, waits: timedelta
) -> tuple[WorkerStatus, ...]:
    shards = LeaseRows(route.service, lease_role, route.database).count_by_owner()
    return tuple(
        _worker(worker, shards[worker.worker_id], hung_after=waits + HUNG_AFTER)
        for worker in WorkerRows(route.service, role, route.database).seen(within=ttl)
    )


def _worker(worker: Worker, shards: int, *, hung_after: timedelta) -> WorkerStatus:
    moved_ago = None if worker.moved_at is None else max(worker.seen_at - worker.moved_at, timedelta(0))
    return WorkerStatus(
        worker_id=worker.worker_id,
        host=worker.host,
        pid=worker.pid,
        started_at=worker.started_at,
        shards=shards,
        moved_ago=moved_ago,
        is_hung=moved_ago is not None and moved_ago > hung_after,
    )
