"""The messages of one service: a list along an index, and a page for each row.

A service's app registers its outbox model with it::

    @admin.register(AgentOutboxMessage)
    class AgentOutboxMessageAdmin(OutboxMessageAdmin):
        pass
"""

from __future__ import annotations

from typing import Any, Final, cast

from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils import timezone
from django.views.decorators.http import require_POST

from outbox.admin import operations
from outbox.admin.access import demand, may_edit, may_operate, may_see_payload
from outbox.admin.details import detail_of, load_detail, load_payload
from outbox.admin.editing import EditForm, editable
from outbox.admin.filters import MessageFilter, known_event_types
from outbox.admin.key_order import KeyOrder
from outbox.admin.lines import load, message_lines
from outbox.admin.pages import Pager, ReadOnlyAdmin
from outbox.admin.rendering import visible
from outbox.admin.row_ids import read_row_id
from outbox.declarations.routes import ServiceRoute
from outbox.lifecycle import Status
from outbox.models import OutboxMessage
from outbox.registry.catalog import route_registry
from outbox.storage.querysets import rows_of

PAGE_SIZE: Final = 50


class OutboxMessageAdmin(ReadOnlyAdmin):
    """The admin of a concrete ``OutboxMessage``."""

    @property
    def service(self) -> str:
        return cast("type[OutboxMessage]", self.model).service

    @property
    def outbox_model(self) -> type[OutboxMessage]:
        return cast("type[OutboxMessage]", self.model)

    @property
    def route(self) -> ServiceRoute:
        return route_registry().catalog.route(self.service)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:  # noqa: ARG002
        return rows_of(self.outbox_model, self.route.database).defer("payload", "traceback")

    def get_urls(self) -> list[URLPattern]:
        prefix = f"{self.opts.app_label}_{self.opts.model_name}"
        pages = (
            ("replay", require_POST(self.replay_view)),
            ("give-up", require_POST(self.give_up_view)),
            ("edit", self.edit_view),
            ("payload", self.payload_view),
        )
        own = [
            path(f"<row_id:row_id>/{name}/", self.admin_site.admin_view(view), name=f"{prefix}_{name}")
            for name, view in pages
        ]
        return [*own, *super().get_urls()]

    # --- the list ------------------------------------------------------------------------------------------------

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show a page of rows, newest first."""
        demand(self.has_view_permission(request))
        wanted_id = request.GET.get("id", "").strip().lstrip("#")
        if wanted_id:
            return self._to_row(request, wanted_id)
        asked = MessageFilter.of(request)
        pager = Pager(request, asked.scans(self.route), size=PAGE_SIZE)
        ids = [row_id for _, row_id in pager.rows]
        rows = load(self.outbox_model, self.route.database, ids)
        lines = message_lines(
            self.admin_site, self.service, rows, ids, timezone.now(), with_reason=may_see_payload(request)
        )
        return self.page(
            request,
            "messages.html",
            title=f"Messages of {self.service}",
            service=self.service,
            asked=asked,
            statuses=[status.value for status in Status],
            event_types=known_event_types(self.service, {line.event_type for line in lines}),
            lines=lines,
            pager=pager,
            **(extra_context or {}),
        )

    def _to_row(self, request: HttpRequest, wanted_id: str) -> HttpResponse:
        row_id = read_row_id(wanted_id)
        if self.get_queryset(request).filter(pk=row_id).exists():
            return HttpResponseRedirect(self.url("change", row_id))
        return self._missing(request, wanted_id)

    # --- one row -------------------------------------------------------------------------------------------------

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",  # noqa: ARG002 - there is no form
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show everything about one row."""
        demand(self.has_view_permission(request))
        key, shows = unquote(object_id), may_see_payload(request)
        row = load_detail(self.outbox_model, self.route, read_row_id(key), with_payload=shows)
        if row is None:
            return self._missing(request, key)
        detail = detail_of(self.admin_site, self.route, row, timezone.now(), with_payload=shows)
        return self.page(
            request,
            "message.html",
            title=f"{detail.line.event_type} #{row.pk}",
            service=self.service,
            detail=detail,
            line=detail.line,
            is_dead=row.status == Status.DEAD,
            may_edit=may_edit(request) and editable(row.event_type, self.service),
            replay_url=self.url("replay", row.pk),
            give_up_url=self.url("give-up", row.pk),
            edit_url=self.url("edit", row.pk),
            payload_url=self.url("payload", row.pk),
            history_url=self.url("history", row.pk),
            **(self._overtaken(row.pk) if row.status == Status.DEAD else {}),
            **(extra_context or {}),
        )

    def payload_view(self, request: HttpRequest, row_id: int) -> HttpResponse:
        """Give the payload column as it is, as a file."""
        demand(self.has_view_permission(request) and may_see_payload(request))
        payload = load_payload(self.outbox_model, self.route, row_id)
        if payload is None:
            return self._missing(request, str(row_id))
        return HttpResponse(
            payload.encode("utf-8", "backslashreplace"),
            headers={
                "Content-Type": "application/json",
                "Content-Disposition": f'attachment; filename="{self.service}-{row_id}.json"',
                "X-Content-Type-Options": "nosniff",
            },
        )

    # --- what an operator does -----------------------------------------------------------------------------------

    def replay_view(self, request: HttpRequest, row_id: int) -> HttpResponse:
        """Send a dead row again."""
        demand(self.has_view_permission(request) and may_operate(request))
        try:
            done = operations.replay(request, self.service, [row_id])
        except operations.NotDoneError as error:
            self.message_user(request, str(error), messages.ERROR)
        else:
            self._tell(request, done, "Replayed: the event is sent again with all its attempts before it.")
        return HttpResponseRedirect(self.url("change", row_id))

    def give_up_view(self, request: HttpRequest, row_id: int) -> HttpResponse:
        """Take a dead row off the open list."""
        demand(self.has_view_permission(request) and may_operate(request))
        reason = request.POST.get("reason", "").strip()
        if not reason:
            self.message_user(request, "Say why: a reason is needed to give an event up.", messages.ERROR)
            return HttpResponseRedirect(self.url("change", row_id))
        try:
            done = operations.give_up(request, self.service, [row_id], reason=reason)
        except operations.NotDoneError as error:
            self.message_user(request, str(error), messages.ERROR)
        else:
            self._tell(request, done, "Given up: the event stays dead and leaves the open list.")
        return HttpResponseRedirect(self.url("change", row_id))

    def edit_view(self, request: HttpRequest, row_id: int) -> HttpResponse:
        """Change the payload of a dead row; saved only when it keeps the contract of its event type."""
        demand(self.has_view_permission(request) and may_edit(request))
        form = EditForm.of(self.outbox_model, self.route, row_id)
        if form is None:
            self.message_user(request, "Only the payload of a dead event can be edited.", messages.WARNING)
            return HttpResponseRedirect(self.url("change", row_id))
        if request.method == "POST" and form.read(request):
            then_replay = "replay" in request.POST
            try:
                done = form.save(request, then_replay=then_replay)
            except operations.NotDoneError as error:
                form.problem = str(error)
            else:
                self._tell(request, int(done), f"Payload saved{' and the event replayed' if then_replay else ''}.")
                return HttpResponseRedirect(self.url("change", row_id))
        return self.page(
            request,
            "edit.html",
            title=f"Edit {visible(form.event_type)} #{row_id}",
            service=self.service,
            form=form,
            row_url=self.url("change", row_id),
            **self._overtaken(row_id),
        )

    def _overtaken(self, row_id: int) -> dict[str, Any]:
        """Return what a page says of the older dead event of the same key that a replay of this one would overtake."""
        older = KeyOrder(self.route).overtaken([row_id]).get(row_id)
        return {} if older is None else {"overtaken": older, "overtaken_url": self.url("change", older)}

    def _tell(self, request: HttpRequest, done: int, text: str) -> None:
        if done:
            self.message_user(request, text, messages.SUCCESS)
        else:
            self.message_user(request, "Nothing was changed: somebody else dealt with it meanwhile.", messages.WARNING)

    def _missing(self, request: HttpRequest, key: str) -> HttpResponse:
        text = f"There is no message {visible(key[:32])} of {self.service} (any more)."
        self.message_user(request, text, messages.WARNING)
        return HttpResponseRedirect(self.url("changelist"))
