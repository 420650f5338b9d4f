"""How a service is doing, for the admin and for ``outbox_status``: numbers that stay cheap with a million rows.

Nothing here counts a whole table: a count stops at its cap, and ages come from the first entry of an index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import connections

from outbox.conf import outbox_settings
from outbox.coordination.leases import CONSUMER, RELAY
from outbox.declarations.contracts import contracts
from outbox.declarations.routes import RouteRegistry, ServiceRoute
from outbox.fields import UtcNow, from_now
from outbox.lifecycle import Status
from outbox.models import RejectedRecord, ServiceSwitch, ShardLease, Worker
from outbox.operations.time_zones import rows_ahead_of_time
from outbox.registry.policies import EventPolicies
from outbox.storage.dialects import dialect_of, from_db, moment_of, to_db

COUNT_CAP: Final = 10_000
HUNG_AFTER: Final = timedelta(minutes=1)
"""Beyond the longest that a worker's loop may wait for a broker or a handler."""
_GROUPS_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Count:
    """A number of rows, exact unless ``capped``: then it is at least ``value``."""

    value: int
    capped: bool = False

    def __str__(self) -> str:
        return f"{self.value:,}+" if self.capped else f"{self.value:,}"


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
class OtherInstallation:
    """Another installation whose records came to the service's topic, until a person resolves its rejected record."""

    installation: str
    records: int
    """How many came, some of them more than once."""
    last_received_at: datetime


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
    switch = ServiceSwitch.objects.using(route.database).filter(pk=route.service).first()
    counts: dict[Status, Count] = {
        status: count_rows(route, "status = %s", [status.value], cap=cap) for status in Status if status != Status.DEAD
    }
    counts[Status.DEAD], dismissed = _count_open(
        route.database,
        f"{route.table} WHERE status = %s ORDER BY next_retry_at DESC, id DESC",
        Status.DEAD.value,
        cap,
    )
    open_rejected, _ = _count_open(
        route.database,
        f"{RejectedRecord._meta.db_table} WHERE service = %s ORDER BY service DESC, id DESC",
        route.service,
        cap,
    )
    return ServiceStatus(
        route=route,
        event_types=tuple((contract.event_type, contract.version) for contract in contracts.of_service(route.service)),
        counts=counts,
        dismissed=dismissed,
        open_rejected=open_rejected,
        other_installations=_other_installations(route),
        parks_a_key=_parks_a_key(route, cap),
        foreign=_foreign(route, registry.foreign_types(route.service), cap),
        oldest_due_age=oldest_due_age(route, registry.foreign_types(route.service)),
        relays=_workers(route, RELAY, RELAY, ttl, waits=timedelta(seconds=configured.relay.send_timeout_seconds)),
        consumers=_workers(route, CONSUMER, f"{CONSUMER}-shards", ttl, waits=longest_call),
        relay_paused=bool(switch and switch.relay_paused),
        consumer_paused=bool(switch and switch.consumer_paused),
        ahead_of_time=Count(*rows_ahead_of_time(route.database, route.table, cap=cap)),
    )


def count_rows(route: ServiceRoute, condition: str, parameters: Iterable[Any], *, cap: int = COUNT_CAP) -> Count:
    """Count rows of the outbox table, looking at ``cap`` + 1 of them at the most."""
    found = _fetch(
        route.database,
        f"SELECT COUNT(*) FROM (SELECT 1 FROM {route.table} WHERE {condition} LIMIT %s) counted",
        [*parameters, cap + 1],
    )[0][0]
    return Count(min(found, cap), found > cap)


def is_sent_again_in_vain(
    route: ServiceRoute, foreign_types: Sequence[str], *, sent_before: datetime, due_after: datetime
) -> bool:
    """Say whether a published row that is due after ``due_after`` was sent before ``sent_before``.

    Such a row was sent again before, and waits longer than others. Those that are due last are looked at.
    """
    connection = connections[route.database]
    sql = dialect_of(connection)
    own = f" AND {sql.is_none_of(route.type_column, foreign_types)}" if foreign_types else ""
    found = _fetch(
        route.database,
        f"SELECT COUNT(CASE WHEN COALESCE({sql.dated.format('published_at')}, updated_at) < %s THEN 1 END)"
        f" FROM (SELECT published_at, updated_at FROM {route.table} WHERE status = %s AND next_retry_at >= %s{own}"
        " ORDER BY next_retry_at DESC LIMIT %s) last_due",
        [
            to_db(connection, sent_before),
            Status.PUBLISHED.value,
            to_db(connection, due_after),
            *foreign_types,
            COUNT_CAP,
        ],
    )
    return bool(found[0][0])


def oldest_due_age(route: ServiceRoute, foreign_types: tuple[str, ...] = ()) -> timedelta | None:
    """Return how long ago the row was created that has been due the longest; None when nothing is due.

    Rows of ``foreign_types`` wait for ``rehome_outbox`` and not for a relay: they are passed over. A row that does not
    say when it was created is as old as its due time.
    """
    sql = dialect_of(connections[route.database])
    now, created_at, due_at = sql.now, sql.dated.format("created_at"), sql.dated.format("next_retry_at")
    own = f" AND {sql.is_none_of(route.type_column, foreign_types)}" if foreign_types else ""
    found = _fetch(
        route.database,
        f"SELECT COALESCE({created_at}, {due_at}), {now} FROM {route.table} WHERE status = %s"
        f" AND (next_retry_at IS NULL OR next_retry_at <= {now}){own} ORDER BY next_retry_at, id LIMIT 1",
        [Status.PENDING.value, *foreign_types],
    )
    if not found:
        return None
    moment = moment_of(found[0][0])
    return timedelta(0) if moment is None else max(from_db(found[0][1]) - moment, timedelta(0))


def _other_installations(route: ServiceRoute) -> tuple[OtherInstallation, ...]:
    """Return the open groups; the topic narrows the search to them, whatever else was rejected."""
    open_groups = RejectedRecord.objects.using(route.database).filter(
        service=route.service, topic=route.topic, installation__isnull=False, resolved_at=None
    )
    found = open_groups.values_list("installation", "records", "last_received_at", "received_at")[:_GROUPS_SHOWN]
    groups = (OtherInstallation(name or "", records, last or first) for name, records, last, first in found)
    return tuple(sorted(groups, key=lambda each: each.last_received_at, reverse=True))


def _parks_a_key(route: ServiceRoute, cap: int) -> bool:
    """Say whether one of the ``cap`` * 2 rows that died last parks its key."""
    found = _fetch(
        route.database,
        f"SELECT COUNT(CASE WHEN parks_key = %s THEN 1 END) FROM (SELECT parks_key FROM {route.table}"
        " WHERE status = %s ORDER BY next_retry_at DESC, id DESC LIMIT %s) newest",
        [True, Status.DEAD.value, cap * 2],
    )
    return bool(found[0][0])


def _foreign(route: ServiceRoute, foreign_types: tuple[str, ...], cap: int) -> Count:
    if not foreign_types:
        return Count(0)
    is_foreign = dialect_of(connections[route.database]).is_one_of(route.type_column, foreign_types)
    counts = [
        _fetch(
            route.database,
            f"SELECT COUNT(*), COUNT(CASE WHEN {is_foreign} THEN 1 END)"
            f" FROM (SELECT {route.type_column} FROM {route.table} WHERE status = %s"
            " ORDER BY next_retry_at, id LIMIT %s) oldest",
            [*foreign_types, status.value, cap * 2],
        )[0]
        for status in (Status.PENDING, Status.PUBLISHED)
    ]
    found = sum(foreign for _, foreign in counts)
    return Count(min(found, cap), found > cap or (found > 0 and any(looked_at == cap * 2 for looked_at, _ in counts)))


def _count_open(using: str, newest: str, parameter: str, cap: int) -> tuple[Count, Count]:
    """Count what is open and what a person resolved among the ``cap`` * 2 newest rows.

    There may be more behind them: then both are capped.

    The limit stands inside: a long list of resolved rows is not read through for the open ones.
    """
    looked_at, found = _fetch(
        using,
        "SELECT COUNT(*), COUNT(CASE WHEN resolved_at IS NULL THEN 1 END)"
        f" FROM (SELECT resolved_at FROM {newest} LIMIT %s) newest",
        [parameter, cap * 2],
    )[0]
    has_more = looked_at == cap * 2
    resolved = looked_at - found
    return Count(min(found, cap), found > cap or has_more), Count(min(resolved, cap), resolved > cap or has_more)


def _workers(
    route: ServiceRoute, role: str, lease_role: str, ttl: timedelta, *, waits: timedelta
) -> tuple[WorkerStatus, ...]:
    leases = ShardLease.objects.using(route.database).filter(
        service=route.service, role=lease_role, expires_at__gt=UtcNow()
    )
    shards: dict[str, int] = {}
    for owner in leases.values_list("owner", flat=True):
        shards[owner] = shards.get(owner, 0) + 1
    alive = Worker.objects.using(route.database).filter(service=route.service, role=role, seen_at__gt=from_now(-ttl))
    return tuple(
        _worker(worker, shards.get(worker.worker_id, 0), hung_after=waits + HUNG_AFTER)
        for worker in alive.order_by("started_at", "worker_id")
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


def _fetch(using: str, sql: str, parameters: list[Any]) -> list[Any]:
    with connections[using].cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())
