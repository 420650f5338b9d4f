"""What ``outbox_status`` says of each service: gathered once, shown as a table or as JSON, and judged."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections
from django.db.utils import DatabaseError, InterfaceError

from outbox.conf import outbox_settings
from outbox.declarations.routes import ServiceRoute
from outbox.lifecycle import Status
from outbox.log_text import one_line
from outbox.operations.statistics import ServiceStatus, WorkerStatus, service_status
from outbox.registry.catalog import route_registry
from outbox.storage.rejections import OtherInstallation
from outbox.storage.status_rows import Count, StatusRows
from outbox.workers.lag import LagProbe, read_lags


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """One service, and what a person should look at: some of the words that docs/configuration.md lists."""

    route: ServiceRoute
    status: ServiceStatus | None
    """None while its database does not answer."""
    database_problem: str
    lag: int | None
    """Records that the consumer group has not committed; None where the broker has none or does not answer."""
    broker_problem: str
    attention: tuple[str, ...]


class StatusProbe:
    """Asks the databases, each on a thread of its own, and the broker; waits for no answer longer than ``timeout``."""

    def __init__(self, routes: Sequence[ServiceRoute], *, stalled_after: timedelta, timeout: timedelta) -> None:
        self._routes = routes
        self._stalled_after = stalled_after
        self._timeout = timeout
        self._lags = LagProbe(read_lags, patience=timeout)

    def reports(self) -> list[ServiceReport]:
        """Return how each service is doing now."""
        deadline = time.monotonic() + self._timeout.total_seconds()
        looks = {using: _DatabaseLook(self._of(using), self._stalled_after) for using in self._databases()}
        for look in looks.values():
            look.start()
        lag = self._lags.report(self._routes)
        for look in looks.values():
            look.join(max(0.0, deadline - time.monotonic()))
        reports = []
        for route in self._routes:
            look = looks[route.database]
            found = look.found.get(route.service)
            problem = "" if found else look.problem or f"no answer within {self._timeout.total_seconds():g} s"
            reports.append(
                ServiceReport(
                    route=route,
                    status=found[0] if found else None,
                    database_problem=problem,
                    lag=lag.lags.get(route.service),
                    broker_problem=lag.problem,
                    attention=_attention(*found or (None, False), broker_problem=lag.problem),
                )
            )
        return reports

    def _databases(self) -> list[str]:
        return list(dict.fromkeys(route.database for route in self._routes))

    def _of(self, using: str) -> list[ServiceRoute]:
        return [route for route in self._routes if route.database == using]


class _DatabaseLook(threading.Thread):
    """Asks one database about its services. Those that it answered for in time are in ``found``."""

    def __init__(self, routes: Sequence[ServiceRoute], stalled_after: timedelta) -> None:
        super().__init__(name=f"outbox-status-{routes[0].database}", daemon=True)
        self.found: dict[str, tuple[ServiceStatus, bool]] = {}
        self.problem = ""
        self._routes = routes
        self._stalled_after = stalled_after

    def run(self) -> None:
        registry = route_registry()
        configured = outbox_settings()
        ttl = timedelta(seconds=configured.leases.ttl_seconds)
        redeliver_after = timedelta(seconds=configured.relay.redeliver_after_seconds)
        try:
            for route in self._routes:
                status = service_status(route, registry, ttl=ttl)
                rows = StatusRows(route, registry.foreign_types(route.service))
                is_stalled = rows.is_stalled(longer_than=self._stalled_after, redeliver_after=redeliver_after)
                self.found[route.service] = (status, is_stalled)
        except (DatabaseError, InterfaceError) as error:
            self.problem = one_line(str(error))
        finally:
            connections.close_all()


def call_for_a_person(reports: Sequence[ServiceReport]) -> str:
    """Say which services need one and why; an empty text when none does."""
    needy = [f"{each.route.service}: {', '.join(each.attention)}" for each in reports if each.attention]
    return f"a person is needed ({'; '.join(needy)})" if needy else ""


def databases_away(reports: Sequence[ServiceReport]) -> str:
    """Name the databases that do not answer, and why; an empty text when all do."""
    return "; ".join(
        dict.fromkeys(f"{each.route.database}: {each.database_problem}" for each in reports if each.database_problem)
    )


class JsonView:
    """The reports as one JSON object. Keys stay; new ones may come. They are listed in docs/configuration.md."""

    def __init__(self, *, one_line: bool) -> None:
        self._indent = None if one_line else 2

    def parts(self, reports: Sequence[ServiceReport]) -> list[str]:
        """Return what to show: one text."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"generated_at": at, "services": [_service(report) for report in reports]}
        return [json.dumps(content, indent=self._indent, ensure_ascii=False)]


def _service(report: ServiceReport) -> dict[str, Any]:
    route, status = report.route, report.status
    named = {
        "service": route.service,
        "table": route.table,
        "topic": route.topic,
        "group": route.group,
        "database": route.database,
        "database_problem": report.database_problem,
        "lag": report.lag,
        "lag_problem": report.broker_problem,
        "attention": list(report.attention),
    }
    if status is None:
        return named
    due = status.oldest_due_age
    return {
        **named,
        "events": [{"type": event_type, "version": version} for event_type, version in status.event_types],
        "counts": {each.value: _count(count) for each, count in status.counts.items()},
        "open_dead": _count(status.counts[Status.DEAD]),
        "dismissed": _count(status.dismissed),
        "open_rejected": _count(status.open_rejected),
        "other_installations": [_installation(each) for each in status.other_installations],
        "foreign": _count(status.foreign),
        "ahead_of_time": _count(status.ahead_of_time),
        "oldest_due_age_seconds": None if due is None else round(due.total_seconds(), 3),
        "relays": [_worker(worker) for worker in status.relays],
        "consumers": [_worker(worker) for worker in status.consumers],
        "relay_paused": status.relay_paused,
        "consumer_paused": status.consumer_paused,
    }


def _count(count: Count) -> dict[str, Any]:
    return {"value": count.value, "capped": count.capped}


def _installation(other: OtherInstallation) -> dict[str, Any]:
    return {
        "installation_id": other.installation,
        "records": other.records,
        "last_received_at": other.last_received_at.isoformat(timespec="seconds"),
    }


def _worker(worker: WorkerStatus) -> dict[str, Any]:
    return {
        "worker_id": worker.worker_id,
        "host": worker.host,
        "pid": worker.pid,
        "started_at": worker.started_at.isoformat(timespec="seconds"),
        "shards": worker.shards,
        "moved_seconds_ago": None if worker.moved_ago is None else round(worker.moved_ago.total_seconds(), 3),
        "is_hung": worker.is_hung,
    }


def _attention(status: ServiceStatus | None, stalled: bool, *, broker_problem: str) -> tuple[str, ...]:
    if status is None:
        return ("database", *(["broker"] if broker_problem else []))
    workers = (*status.relays, *status.consumers)
    found = (
        ("broker", bool(broker_problem)),
        ("no relay", not status.relays),
        ("no consumer", not status.consumers),
        ("hung", any(worker.is_hung for worker in workers)),
        ("dead", status.counts[Status.DEAD].value > 0),
        ("parked", status.parks_a_key),
        ("rejected", status.open_rejected.value > 0),
        ("other installation", bool(status.other_installations)),
        ("foreign", status.foreign.value > 0),
        ("time zone", status.ahead_of_time.value > 0),
        ("stalled", stalled),
    )
    return tuple(word for word, is_so in found if is_so)
