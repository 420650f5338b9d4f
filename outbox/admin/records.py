"""Read-only pages for a table of a service that is no outbox table: what its handlers wrote.

A subclass says what to show::

    @admin.register(AgentStateSnapshotRecord)
    class AgentStateSnapshotRecordAdmin(RecordAdmin):
        list_columns = ("conversation_id", "user_id", "updated_at")
        filter_columns = ("conversation_id", "user_id")
        payload_columns = ("snapshot_json",)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Final

from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import Field, Model, QuerySet
from django.db.models.functions import Substr
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone

from outbox.admin.access import demand, may_see_payload
from outbox.admin.details import OctetLength
from outbox.admin.pages import Pager, ReadOnlyAdmin
from outbox.admin.rendering import SHOWN_CHARACTERS, Shown, moment, shown_json, size_text, visible
from outbox.admin.row_ids import read_row_id
from outbox.storage.index_scans import Condition, IndexScan
from outbox.storage.querysets import rows_of

PAGE_SIZE: Final = 50


@dataclass(frozen=True, slots=True)
class Cell:
    """A value in the list; ``title`` is what the mouse finds."""

    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Large:
    """A column that holds what an event carried."""

    name: str
    size: str
    shown: Shown | None
    """None without the permission to see it."""


class RecordAdmin(ReadOnlyAdmin):
    """The admin of a table with a numeric primary key ``id``, read by it, the newest first."""

    list_columns: ClassVar[Sequence[str]] = ()
    filter_columns: ClassVar[Sequence[str]] = ()
    """Columns that the list can be narrowed by, to one value exactly; each needs an index that begins with it."""
    payload_columns: ClassVar[Sequence[str]] = ()
    """Columns that only holders of ``outbox.view_outbox_payload`` see; a list loads none of them."""
    error_columns: ClassVar[Sequence[str]] = ()
    """Short columns that may quote what an event carried: only these people see them, in a list too."""
    record_template: ClassVar[str] = "record.html"
    """The page of one row, below ``admin/outbox/`` of an app's templates; it extends the usual one."""

    @property
    def using(self) -> str:
        return router.db_for_read(self.model)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:  # noqa: ARG002
        return rows_of(self.model, self.using).defer(*self.payload_columns)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show a page of rows."""
        demand(self.has_view_permission(request))
        asked = {name: request.GET.get(name, "").replace("\x00", "").strip() for name in self.filter_columns}
        conditions = self._conditions(asked)
        if conditions is None:
            self.message_user(request, "No row can have such a value.", messages.WARNING)
            return HttpResponseRedirect(self.url("changelist"))
        scan = IndexScan(using=self.using, table=self.opts.db_table, where=conditions)
        pager = Pager(request, {"rows": scan}, size=PAGE_SIZE)
        ids = [row_id for _, row_id in pager.rows]
        rows = self.get_queryset(request).in_bulk(ids)
        shown = [name for name in self.list_columns if name not in self._hidden(request)]
        now = timezone.now()
        return self.page(
            request,
            "records.html",
            title=self._plural,
            columns=[self._label(name) for name in ("id", *shown)],
            filters=[(name, self._label(name), value) for name, value in asked.items()],
            is_filtered=any(asked.values()),
            lines=[
                (
                    self.url("change", row_id),
                    row_id,
                    [_cell(getattr(rows[row_id], name), now) for name in shown],
                )
                for row_id in ids
                if row_id in rows
            ],
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
        """Show one row."""
        demand(self.has_view_permission(request))
        key = unquote(object_id)
        rows = self.get_queryset(request).annotate(
            **{f"{name}_size": OctetLength(name) for name in self.payload_columns}
        )
        if may_see_payload(request):
            rows = rows.annotate(**{f"{name}_head": Substr(name, 1, SHOWN_CHARACTERS) for name in self.payload_columns})
        row = rows.filter(pk=read_row_id(key)).first()
        if row is None:
            self.message_user(request, "There is no such row (any more).", messages.WARNING)
            return HttpResponseRedirect(self.url("changelist"))
        return self.page(
            request,
            self.record_template,
            title=visible(str(row)),
            plural=self._plural,
            facts=self._facts(request, row),
            large=[_large(row, name, self._label(name)) for name in self.payload_columns],
            **self.record_context(request, row),
            **(extra_context or {}),
        )

    def record_context(self, request: HttpRequest, record: Any) -> dict[str, Any]:  # noqa: ARG002 - for subclasses
        """Return what ``record_template`` needs besides, of the row that is shown."""
        return {}

    @property
    def _plural(self) -> str:
        plural = str(self.opts.verbose_name_plural)
        return plural[:1].upper() + plural[1:]

    def _label(self, name: str) -> str:
        return name.replace("_", " ").capitalize() if name != "id" else "ID"

    def _conditions(self, asked: dict[str, str]) -> tuple[Condition, ...] | None:
        conditions = []
        for name, text in asked.items():
            if not text:
                continue
            try:
                value = self.opts.get_field(name).to_python(text)  # type: ignore[union-attr]
            except ValidationError:
                return None
            if isinstance(value, int) and abs(value) >= 2**63:
                return None
            conditions.append(Condition(name, "= %s", (value,)))
        return tuple(conditions)

    def _hidden(self, request: HttpRequest) -> frozenset[str]:
        """Return the columns that the user sees nowhere among the others."""
        return frozenset(self.payload_columns) | frozenset(() if may_see_payload(request) else self.error_columns)

    def _facts(self, request: HttpRequest, row: Model) -> list[tuple[str, Cell]]:
        now, hidden = timezone.now(), self._hidden(request)
        return [
            (self._label(field.name), _cell(getattr(row, field.attname), now))
            for field in self.opts.concrete_fields
            if isinstance(field, Field) and field.name not in hidden
        ]


def _cell(value: Any, now: datetime) -> Cell:
    if isinstance(value, datetime):
        at = moment(value, now)
        return Cell(at.distance, at.exact) if at else Cell("")
    text = "" if value is None else visible(str(value))
    return Cell(text, text)


def _large(row: Model, name: str, label: str) -> Large:
    head: str | None = getattr(row, f"{name}_head", None)
    shown = None if head is None else shown_json(head, is_whole=len(head) < SHOWN_CHARACTERS)
    return Large(label, size_text(getattr(row, f"{name}_size") or 0), shown)
