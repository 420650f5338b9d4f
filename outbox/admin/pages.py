"""What the pages share: read-only model admins, and pages that belong to no table.

A page of its own appears on the admin's index as a model that lives in an app registry of its own, as Django's
``MigrationRecorder.Migration`` does: no table, no migration, no content type, no permission; nothing queries it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar
from urllib.parse import urlencode

from django.apps.registry import Apps
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db import models
from django.db.models import Model
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, URLPattern, reverse

from outbox.admin.access import demand, may_edit, may_operate, may_see_payload, may_view, visible_services
from outbox.admin.paging import Cut, Page, Stream, from_token, read_page, to_token
from outbox.admin.rendering import visible

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Model]
else:
    ModelAdmin = admin.ModelAdmin


M = TypeVar("M", bound=Model)

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""These pages show what strangers wrote: should it ever get out of its escapes, browsers still run none of it."""


class Route(models.Model):
    """Stands for the routes page on the admin's index."""

    class Meta:
        apps = Apps()
        app_label = "outbox"
        managed = False
        default_permissions = ()
        verbose_name_plural = "routes"

    def __str__(self) -> str:
        return "routes"


class DeadEvent(models.Model):
    """Stands for the page of dead events on the admin's index."""

    class Meta:
        apps = Apps()
        app_label = "outbox"
        managed = False
        default_permissions = ()
        verbose_name_plural = "dead events"

    def __str__(self) -> str:
        return "dead events"


class ReadOnlyAdmin(ModelAdmin):
    """Shows rows and changes none."""

    actions = None

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002
        return False

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002
        """Ask for the *view* permission itself, as all pages of the outbox do: nobody can change a row here."""
        return may_view(request, self.model)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Model | None:
        """Return a row for Django's own pages, the history, which show its text as it is."""
        demand(self.has_view_permission(request))
        row: Model | None = super().get_object(request, object_id, from_field)
        if row is not None:
            vars(row).update({name: visible(value) for name, value in vars(row).items() if isinstance(value, str)})
        return row

    def page(self, request: HttpRequest, template: str, **context: Any) -> TemplateResponse:
        """Return a page within the frame of the admin."""
        request.current_app = self.admin_site.name
        return TemplateResponse(
            request,
            f"admin/outbox/{template}",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "list_url": self.url("changelist"),
                "may_operate": may_operate(request),
                "may_edit": may_edit(request),
                "may_see_payload": may_see_payload(request),
                **context,
            },
            headers={"Content-Security-Policy": _POLICY},
        )

    def url(self, name: str, *args: Any) -> str:
        """Return the address of one of this admin's own pages."""
        return model_url(self.admin_site, self.opts.model, name, *args)


class StandalonePage(ReadOnlyAdmin):
    """A page without a table, for whoever may view the messages of at least one service."""

    def get_urls(self) -> list[URLPattern]:
        """Leave out the pages of single rows: there are none."""
        return [url for url in super().get_urls() if (url.name or "").endswith("_changelist")]

    def has_module_permission(self, request: HttpRequest) -> bool:
        return bool(visible_services(request))

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002
        return bool(visible_services(request))


class Pager:
    """Reads a page that the query string asks for, and gives the links to its neighbours."""

    AFTER: ClassVar = "after"
    BEFORE: ClassVar = "before"

    def __init__(self, request: HttpRequest, streams: Mapping[str, Stream], *, size: int) -> None:
        upward = self.BEFORE in request.GET
        token = request.GET.get(self.BEFORE if upward else self.AFTER, "")
        cut: Cut = from_token(token, streams)
        self._filters = {
            name: value for name, value in request.GET.items() if value and name not in {self.AFTER, self.BEFORE}
        }
        self._page: Page = read_page(streams, cut=cut, upward=upward and bool(cut), limit=size)
        self.rows = self._page.rows
        self.stopped = self._page.stopped

    @property
    def newest_url(self) -> str:
        return f"?{urlencode(self._filters)}" if self._page.has_newer else ""

    @property
    def newer_url(self) -> str:
        return self._url(self.BEFORE, self._page.top) if self._page.has_newer else ""

    @property
    def older_url(self) -> str:
        return self._url(self.AFTER, self._page.bottom) if self._page.has_older else ""

    def _url(self, name: str, cut: Cut) -> str:
        return f"?{urlencode({**self._filters, name: to_token(cut)})}"


def model_url(site: admin.AdminSite, model: type[Model], name: str, *args: Any) -> str:
    """Return the address of a page of ``model``; an empty text where the site does not have it."""
    options = model._meta
    try:
        return reverse(
            f"admin:{options.app_label}_{options.model_name}_{name}",
            args=[quote(arg) for arg in args],
            current_app=site.name,
        )
    except NoReverseMatch:
        return ""
