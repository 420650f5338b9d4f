"""One row of a table as the pages show it: text only, worked out before the template sees it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.contrib.admin import AdminSite

from outbox.admin.pages import model_url
from outbox.admin.rendering import Moment, first_line, moment, visible
from outbox.lifecycle import Status
from outbox.models import OutboxMessage
from outbox.registry.catalog import route_registry
from outbox.storage.querysets import rows_of

LIST_COLUMNS = (
    "id",
    "event_type",
    "message_key",
    "status",
    "retry_count",
    "max_retry",
    "next_retry_at",
    "last_error",
    "error_class",
    "published_at",
    "consumed_at",
    "created_at",
    "parks_key",
    "dead_at",
    "resolved_at",
    "resolved_by",
    "resolution",
)
"""What a list loads: neither payload nor traceback, which may be megabytes."""


@dataclass(frozen=True, slots=True)
class Badge:
    """A status as a word and as a colour (a class of the style sheet)."""

    word: str
    colour: str


@dataclass(frozen=True, slots=True)
class MessageLine:
    """An outbox row in a list."""

    service: str
    id: int
    url: str
    event_type: str
    is_foreign: bool
    key: str
    badge: Badge
    step: str
    """What the time beside the status means."""
    at: Moment | None
    created: Moment | None
    attempts: str
    error_class: str
    reason: str
    parks_key: bool
    given_up: str
    row: OutboxMessage

    @property
    def type_parts(self) -> list[str]:
        """Return the event type in pieces between which a line may break."""
        return [part for part in re.split(r"(?<=[._-])", self.event_type) if part]

    @property
    def short_reason(self) -> str:
        """Return the reason without the error class in front, for where that is shown beside it."""
        return self.reason.removeprefix(f"{self.error_class}: ") if self.error_class else self.reason

    @property
    def token(self) -> str:
        """Return what names the row in a form that lists rows of several services."""
        return f"{self.service}:{self.id}"


def load(model: type[OutboxMessage], using: str, ids: Iterable[int]) -> dict[int, OutboxMessage]:
    """Return the rows of ``ids`` that still exist, without their large columns."""
    wanted = list(ids)
    return rows_of(model, using).only(*LIST_COLUMNS).in_bulk(wanted) if wanted else {}


def message_lines(
    site: AdminSite,
    service: str,
    rows: Mapping[int, OutboxMessage],
    ids: Sequence[int],
    now: datetime,
    *,
    with_reason: bool,
) -> list[MessageLine]:
    """Return the lines of ``ids`` in that order; a row that was pruned meanwhile has none."""
    foreign_types = set(route_registry().foreign_types(service))
    return [
        message_line(site, service, rows[row_id], foreign_types, now, with_reason=with_reason)
        for row_id in ids
        if row_id in rows
    ]


def message_line(
    site: AdminSite, service: str, row: OutboxMessage, foreign_types: set[str], now: datetime, *, with_reason: bool
) -> MessageLine:
    """Return the line of ``row``; ``with_reason`` for those who may see what its error quotes of the payload."""
    step, at = _step(row)
    return MessageLine(
        service=service,
        id=row.pk,
        url=model_url(site, type(row), "change", row.pk),
        event_type=visible(row.event_type),
        is_foreign=row.event_type in foreign_types,
        key=visible(row.message_key),
        badge=badge(row),
        step=step,
        at=moment(at, now),
        created=moment(row.created_at, now),
        attempts=f"{row.retry_count} of {row.max_retry}",
        error_class=visible(row.error_class),
        reason=first_line(row.last_error) if with_reason else "",
        parks_key=row.parks_key,
        given_up=_given_up(row, now),
        row=row,
    )


def badge(row: OutboxMessage) -> Badge:
    """Return how the status of ``row`` is shown."""
    if row.status == Status.DEAD and row.resolved_at is not None:
        return Badge("given up", "given-up")
    return Badge(visible(row.status), row.status if row.status in set(Status) else "other")


def _step(row: OutboxMessage) -> tuple[str, datetime | None]:
    """Return what happened to the row last, or is to come, and when."""
    if row.status == Status.PENDING:
        return "due", row.next_retry_at or row.created_at
    if row.status == Status.PUBLISHED:
        return "sent", row.published_at
    if row.status == Status.CONSUMED:
        return "done", row.consumed_at
    return "died", row.dead_at or row.next_retry_at


def _given_up(row: OutboxMessage, now: datetime) -> str:
    at = moment(row.resolved_at, now)
    return f"{visible(row.resolved_by) or 'somebody'}, {at.distance}: {visible(row.resolution)}" if at else ""
