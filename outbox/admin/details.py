"""All that there is to say about one outbox row, also whom it waits for and who waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.contrib.admin import AdminSite
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Func, IntegerField
from django.db.models.functions import Substr
from django.db.models.sql.compiler import SQLCompiler

from outbox.admin.lines import MessageLine, load, message_line
from outbox.admin.rendering import SHOWN_CHARACTERS, Moment, Shown, moment, shown_json, size_text, visible
from outbox.consumer.isolation import MAX_INTERRUPTIONS
from outbox.declarations.routes import ServiceRoute
from outbox.lifecycle import UNFINISHED, Status
from outbox.models import OutboxMessage
from outbox.registry.catalog import repository_of, route_registry
from outbox.storage.querysets import rows_of
from outbox.storage.status_rows import StatusRows

_WAITING_CAP: Final = 1_000
_TRACEBACK_CHARACTERS: Final = 64 * 1024


class OctetLength(Func):
    """The length of a text in bytes."""

    function = "OCTET_LENGTH"
    output_field = IntegerField()
    arity = 1

    def as_sqlite(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template="LENGTH(CAST(%(expressions)s AS BLOB))", **context)


@dataclass(frozen=True, slots=True)
class Step:
    """A point in the life of a row."""

    name: str
    at: Moment


@dataclass(frozen=True, slots=True)
class Detail:
    """What the page of a row shows."""

    line: MessageLine
    facts: list[tuple[str, str]]
    steps: list[Step]
    reason: str
    traceback: Shown
    hides_reason: bool
    """There is an error, and its text is for those who may see payloads: it may quote one."""
    size: str
    payload: Shown | None
    """None without the permission to see it."""
    blocker: MessageLine | None
    """The oldest row of the same key that this one waits for."""
    waiting: str
    """How many later rows of its key wait for this one, when it parks its key."""


def load_detail(
    model: type[OutboxMessage], route: ServiceRoute, row_id: int, *, with_payload: bool
) -> OutboxMessage | None:
    """Return a row with ``payload_size`` and, ``with_payload``, the beginning of its payload; None when it is gone."""
    rows = rows_of(model, route.database).defer("payload").annotate(payload_size=OctetLength("payload"))
    if with_payload:
        rows = rows.annotate(payload_head=Substr("payload", 1, SHOWN_CHARACTERS))
    else:
        rows = rows.defer("traceback")
    return rows.filter(pk=row_id).first()


def load_payload(model: type[OutboxMessage], route: ServiceRoute, row_id: int) -> str | None:
    """Return the whole payload column; None when the row is gone."""
    return rows_of(model, route.database).filter(pk=row_id).values_list("payload", flat=True).first()


def detail_of(site: AdminSite, route: ServiceRoute, row: OutboxMessage, now: datetime, *, with_payload: bool) -> Detail:
    """Return what the page of ``row``, loaded by ``load_detail`` likewise, shows."""
    foreign_types = route_registry().foreign_types(route.service)
    blocker = _blocker(route, row)
    size: int = row.payload_size  # type: ignore[attr-defined]
    head: str | None = getattr(row, "payload_head", None)
    traceback = (row.traceback or "") if with_payload else ""
    return Detail(
        line=message_line(site, route.service, row, set(foreign_types), now, with_reason=with_payload),
        facts=_facts(row),
        steps=_steps(row, now),
        reason=visible(row.last_error) if with_payload else "",
        traceback=Shown(visible(traceback[-_TRACEBACK_CHARACTERS:])),
        hides_reason=bool(row.last_error) and not with_payload,
        size=size_text(size),
        payload=None if head is None else shown_json(head, is_whole=len(head) < SHOWN_CHARACTERS),
        blocker=message_line(site, route.service, blocker, set(foreign_types), now, with_reason=False)
        if blocker
        else None,
        waiting=_waiting(route, row),
    )


def _facts(row: OutboxMessage) -> list[tuple[str, str]]:
    facts = [
        ("Key", row.message_key),
        ("Event id", row.event_id),
        ("Attempts that failed", f"{row.retry_count} of {row.max_retry}"),
        ("Replayed", str(row.replay_count or "")),
        ("Interruptions in a row", f"{row.interruptions} of {MAX_INTERRUPTIONS}" if row.interruptions else ""),
        ("Service column", row.service_name),
        ("Topic column", row.topic),
        ("Shard", str(row.shard)),
        ("Trace", row.traceparent),
    ]
    return [(name, visible(value)) for name, value in facts if value]


def _steps(row: OutboxMessage, now: datetime) -> list[Step]:
    due = {
        Status.PENDING.value: "Due",
        Status.PUBLISHED.value: "Sent again if not consumed by",
    }
    moments = (
        ("Created", row.created_at),
        ("Sent", row.published_at),
        ("Consumed", row.consumed_at),
        ("Died", row.dead_at),
        ("Given up", row.resolved_at),
        ("Last changed", row.updated_at),
        (due.get(row.status, ""), row.next_retry_at),
    )
    return [Step(name, shown) for name, at in moments if name and (shown := moment(at, now))]


def _blocker(route: ServiceRoute, row: OutboxMessage) -> OutboxMessage | None:
    """Return the row that a consumer would find before this one."""
    if row.status not in UNFINISHED:
        return None
    found = repository_of(route.service).predecessors([row]).blockers.get(row.message_key)
    return None if found is None else load(type(row), route.database, [found.id]).get(found.id)


def _waiting(route: ServiceRoute, row: OutboxMessage) -> str:
    if row.status != Status.DEAD or not row.parks_key:
        return ""
    return str(StatusRows(route).count_waiting_behind(row.message_key, row.pk, cap=_WAITING_CAP))
