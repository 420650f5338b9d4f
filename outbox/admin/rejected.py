"""Broker records that could not be tied to a row: what came, from where, and why it was not taken.

All records of another installation are one line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone

from outbox.admin import operations
from outbox.admin.access import demand, may_operate, may_see_payload
from outbox.admin.filters import ALL, OPEN
from outbox.admin.pages import Pager, ReadOnlyAdmin
from outbox.admin.rendering import Moment, Shown, first_line, moment, shown_bytes, size_text, visible
from outbox.admin.row_ids import read_row_id
from outbox.admin.selection import count, outcome, read_selection
from outbox.models import RejectedRecord
from outbox.registry.catalog import route_registry
from outbox.storage.index_scans import Condition, IndexScan
from outbox.storage.querysets import rows_of

PAGE_SIZE: Final = 50
_LARGE_COLUMNS: Final = ("key", "value", "headers")


@dataclass(frozen=True, slots=True)
class RecordLine:
    """A rejected record in the list."""

    token: str
    url: str
    service: str
    place: str
    group: str
    """How many records of which other installation it stands for; empty where it is one record."""
    reason: str
    received: Moment | None
    is_open: bool
    resolved: str


@admin.register(RejectedRecord)
class RejectedRecordAdmin(ReadOnlyAdmin):
    """The list of rejected records of all services, the last that came first, and a page for each."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show a page of records, or take the selected ones off the open list."""
        demand(self.has_view_permission(request))
        if request.method == "POST":
            return self._resolve(request)
        services = list(route_registry().catalog.services)
        service = request.GET.get("service", "")
        service = service if service in services else ""
        state = ALL if request.GET.get("state") == ALL else OPEN
        pager = Pager(request, _scans(service, state), size=PAGE_SIZE)
        return self.page(
            request,
            "rejected_list.html",
            title="Rejected records",
            services=services,
            service=service,
            state=state,
            states=[(OPEN, "open"), (ALL, "all")],
            lines=self._lines(pager),
            pager=pager,
            **(extra_context or {}),
        )

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",  # noqa: ARG002 - there is no form
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show one record with its bytes."""
        demand(self.has_view_permission(request))
        using, row_id = _address(unquote(object_id))
        row = rows_of(RejectedRecord, using).filter(pk=row_id).first() if using else None
        if row is None:
            self.message_user(request, "There is no such record (any more).", messages.WARNING)
            return HttpResponseRedirect(self.url("changelist"))
        key, value = bytes(row.key or b""), bytes(row.value or b"")
        shows = may_see_payload(request)
        return self.page(
            request,
            "rejected.html",
            title=f"Rejected record {visible(str(row))}",
            line=self._line(using, row, timezone.now()),
            reason=visible(row.reason),
            digest="" if row.installation else visible(row.digest),
            last_place=f"[{row.last_partition}] @ {row.last_offset}" if row.installation else "",
            key_size=_size_text(key, row.key_size),
            value_size=_size_text(value, row.value_size),
            key=_shown(row.key) if shows else None,
            value=_shown(row.value) if shows else None,
            headers=_headers(row.headers) if shows else None,
            **(extra_context or {}),
        )

    def _lines(self, pager: Pager) -> list[RecordLine]:
        ids: dict[str, list[int]] = {}
        for using, row_id in pager.rows:
            ids.setdefault(using, []).append(row_id)
        rows = {
            (using, row.pk): row
            for using, wanted in ids.items()
            for row in rows_of(RejectedRecord, using).defer(*_LARGE_COLUMNS).filter(pk__in=wanted)
        }
        now = timezone.now()
        return [self._line(key[0], rows[key], now) for key in pager.rows if key in rows]

    def _line(self, using: str, row: RejectedRecord, now: datetime) -> RecordLine:
        resolved = moment(row.resolved_at, now)
        return RecordLine(
            token=f"{using}:{row.pk}",
            url=self.url("change", operations.record_key(using, row.pk)),
            service=visible(row.service),
            place=f"{visible(row.topic)} [{row.partition}] @ {row.offset}",
            group=f"{row.records:,} records of installation {visible(row.installation)}" if row.installation else "",
            reason=first_line(row.reason),
            received=moment(row.last_received_at or row.received_at, now),
            is_open=resolved is None,
            resolved=f"{visible(row.resolved_by) or 'somebody'}, {resolved.distance}" if resolved else "",
        )

    def _resolve(self, request: HttpRequest) -> HttpResponse:
        demand(may_operate(request))
        known = _databases()
        selection = {
            using: ids for using, ids in read_selection(request.POST.getlist("selected")).items() if using in known
        }
        done = 0
        try:
            for using, ids in selection.items():
                done += operations.resolve_rejected(request, using, ids)
        except operations.NotDoneError as error:
            self.message_user(request, str(error), messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())
        if not selection:
            self.message_user(request, "No record was selected.", messages.WARNING)
        else:
            text = outcome(done, count(selection), verb="taken off the open list", otherwise="not on it any more")
            self.message_user(request, text, messages.SUCCESS if done == count(selection) else messages.WARNING)
        return HttpResponseRedirect(request.get_full_path())


def _databases() -> list[str]:
    """Return the databases that hold outbox tables, each once; rejected records lie beside them."""
    return list(dict.fromkeys(route.database for route in route_registry().catalog))


def _scans(service: str, state: str) -> dict[str, IndexScan]:
    databases = [route_registry().catalog.route(service).database] if service else _databases()
    return {
        using: IndexScan(
            using=using,
            table=RejectedRecord._meta.db_table,
            where=(Condition("service", "= %s", (service,)),) if service else (),
            rank="received_at",
            filters=() if state == ALL else (Condition("resolved_at", "IS NULL"),),
        )
        for using in databases
    }


def _address(key: str) -> tuple[str, int]:
    """Read what ``operations.record_key`` wrote; an empty alias for what it did not write."""
    using, _, text = key.rpartition(":")
    row_id = read_row_id(text)
    return (using or "default", row_id) if row_id and (using or "default") in _databases() else ("", 0)


def _size_text(kept: bytes, size: int) -> str:
    """Return what a key or value measured, and how much of it is there where that is not all."""
    if size <= len(kept):
        return size_text(len(kept))
    return f"{size_text(size)}, of which the first {size_text(len(kept))} are kept"


def _shown(raw: bytes | memoryview | None) -> Shown:
    return shown_bytes(None if raw is None else bytes(raw))


def _headers(raw: str) -> list[tuple[str, str]]:
    try:
        pairs = json.loads(raw)
        return [(visible(str(name)), visible(str(value))) for name, value in pairs]
    except (ValueError, TypeError, RecursionError):
        return [("", visible(raw))] if raw else []
