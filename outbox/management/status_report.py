"""What ``outbox_status`` says of each service: gathered once, shown as a table or as JSON, and judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections

from outbox.brokers.base import Broker
from outbox.catalog import route_registry
from outbox.conf import outbox_settings
from outbox.lifecycle import Status
from outbox.repository import OutboxRepository
from outbox.routes import ServiceRoute
from outbox.sql import placeholders, to_db
from outbox.statistics import Count, ServiceStatus, WorkerStatus, count_rows, service_status


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """One service, and what a person should look at: some of ``dead``, ``rejected``, ``foreign``, ``stalled``."""

    status: ServiceStatus
    attention: tuple[str, ...]


def gather(routes: Sequence[ServiceRoute], broker: Broker, *, stalled_after: timedelta) -> list[ServiceReport]:
    """Ask databases and broker; a broker that is away is asked once, and its reason stands in every report."""
    registry = route_registry()
    ttl = timedelta(seconds=outbox_settings().leases.ttl_seconds)
    reports = []
    away = ""
    for route in routes:
        status = service_status(route, registry, ttl=ttl, broker=None if away else broker)
        away = away or status.lag_problem
        if away and not status.lag_problem:
            status = replace(status, lag_problem=away)
        stalled = is_stalled(route, registry.foreign_types(route.service), longer_than=stalled_after)
        reports.append(ServiceReport(status, _attention(status, stalled=stalled)))
    return reports


def call_for_a_person(reports: Sequence[ServiceReport]) -> str:
    """Say which services need one and why; an empty text when none does."""
    needy = [f"{each.status.route.service}: {', '.join(each.attention)}" for each in reports if each.attention]
    return f"a person is needed ({'; '.join(needy)})" if needy else ""


def is_stalled(route: ServiceRoute, foreign_types: Sequence[str], *, longer_than: timedelta) -> bool:
    """Say whether a row has been due, or on its way, for longer than that; foreign rows wait for ever and do not count.

    Both are answered by the first entry of an index. A published row is due again when it is time to redeliver it, so
    that time, less the delay until then, is when it was sent.
    """
    connection = connections[route.database]
    redeliver_after = timedelta(seconds=outbox_settings().relay.redeliver_after_seconds)
    own = f" AND event_type NOT IN ({placeholders(foreign_types)})" if foreign_types else ""
    due_before = OutboxRepository(route).now() - longer_than
    for status, moment in ((Status.PENDING, due_before), (Status.PUBLISHED, due_before + redeliver_after)):
        condition = f"status = %s AND next_retry_at < %s{own}"
        if count_rows(route, condition, [status.value, to_db(connection, moment), *foreign_types], cap=1).value:
            return True
    return False


class JsonView:
    """The reports as one JSON object. Keys stay; new ones may come. They are listed in docs/configuration.md."""

    def __init__(self, *, one_line: bool) -> None:
        self._indent = None if one_line else 2

    def show(self, reports: Sequence[ServiceReport]) -> str:
        return self._dump({"services": [_service(report) for report in reports]})

    def say_away(self, problem: str) -> str:
        return self._dump({"error": f"database error: {problem}", "services": []})

    def _dump(self, content: dict[str, Any]) -> str:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return json.dumps({"generated_at": at, **content}, indent=self._indent, ensure_ascii=False)


def _service(report: ServiceReport) -> dict[str, Any]:
    status = report.status
    due = status.oldest_due_age
    return {
        "service": status.route.service,
        "table": status.route.table,
        "topic": status.route.topic,
        "group": status.route.group,
        "database": status.route.database,
        "events": [{"type": event_type, "version": version} for event_type, version in status.event_types],
        "counts": {each.value: _count(count) for each, count in status.counts.items()},
        "open_dead": _count(status.counts[Status.DEAD]),
        "dismissed": _count(status.dismissed),
        "open_rejected": _count(status.open_rejected),
        "foreign": _count(status.foreign),
        "oldest_due_age_seconds": None if due is None else round(due.total_seconds(), 3),
        "lag": status.lag,
        "lag_problem": status.lag_problem,
        "relays": [_worker(worker) for worker in status.relays],
        "consumers": [_worker(worker) for worker in status.consumers],
        "relay_paused": status.relay_paused,
        "consumer_paused": status.consumer_paused,
        "attention": list(report.attention),
    }


def _count(count: Count) -> dict[str, Any]:
    return {"value": count.value, "capped": count.capped}


def _worker(worker: WorkerStatus) -> dict[str, Any]:
    return {
        "worker_id": worker.worker_id,
        "host": worker.host,
        "pid": worker.pid,
        "started_at": worker.started_at.isoformat(timespec="seconds"),
        "shards": worker.shards,
    }


def _attention(status: ServiceStatus, *, stalled: bool) -> tuple[str, ...]:
    found = (
        ("dead", status.counts[Status.DEAD].value > 0),
        ("rejected", status.open_rejected.value > 0),
        ("foreign", status.foreign.value > 0),
        ("stalled", stalled),
    )
    return tuple(word for word, is_so in found if is_so)
