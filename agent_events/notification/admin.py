"""The admin of the `notification` service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_POST

from agent_events.notification.assembly import build_channels, build_records
from agent_events.notification.forms import ChannelForm
from agent_events.notification.lifecycle import REQUEUE
from agent_events.notification.models import NotificationOutboxMessage, NotificationRecord, UserNotificationChannel
from agent_events.notification.records import FEISHU
from outbox.admin import OutboxMessageAdmin, RecordAdmin, may_operate

if TYPE_CHECKING:
    ChannelBase = admin.ModelAdmin[UserNotificationChannel]
else:
    ChannelBase = admin.ModelAdmin


@admin.register(NotificationOutboxMessage)
class NotificationOutboxMessageAdmin(OutboxMessageAdmin):
    """The messages of the service."""


@admin.register(NotificationRecord)
class NotificationRecordAdmin(RecordAdmin):
    """What users are told and how far it got: read-only; ``Deliver again`` asks the store."""

    list_columns = ("user_id", "trigger_type", "status", "attempt_count", "next_retry_at", "last_error_code", "sent_at")
    filter_columns = ("status", "user_id")
    payload_columns = ("summary_text", "fallback_text", "request_json", "response_text")
    error_columns = ("last_error",)
    record_template = "notification_record.html"

    def get_urls(self) -> list[URLPattern]:
        again = self.admin_site.admin_view(require_POST(self.again_view))
        return [
            path("<row_id:record_id>/again/", again, name="notification_notificationrecord_again"),
            *super().get_urls(),
        ]

    def record_context(self, request: HttpRequest, record: Any) -> dict[str, Any]:
        """Return what can be done about a record."""
        can_go_again = record.status in REQUEUE.sources and may_operate(request)
        return {"again_url": self.url("again", record.pk) if can_go_again else ""}

    def again_view(self, request: HttpRequest, record_id: int) -> HttpResponse:
        """Put a dead or skipped record back to pending, with all attempts before it."""
        if not (self.has_view_permission(request) and may_operate(request)):
            raise PermissionDenied
        if build_records().requeue([record_id]):
            self.log_change(request, self.get_queryset(request).get(pk=record_id), "Delivered again")
            self.message_user(request, "The notification is delivered again.", messages.SUCCESS)
        else:
            self.message_user(request, "Nothing was changed: it is neither dead nor skipped.", messages.WARNING)
        return HttpResponseRedirect(self.url("change", record_id))


@admin.register(UserNotificationChannel)
@method_decorator(sensitive_post_parameters("webhook", "token"), name="changeform_view")
class UserNotificationChannelAdmin(ChannelBase):
    """Where users want to be told. Webhook and token can be set and are never shown."""

    form = ChannelForm
    fields = ("user_id", "enabled", "webhook_hint", "webhook", "token_hint", "token", "remove_token")
    list_display = ("user_id", "channel", "enabled", "webhook_hint", "token_hint", "updated_at")
    list_filter = ("enabled",)
    search_fields = ("=user_id",)
    ordering = ("-id",)
    show_full_result_count = False

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:  # noqa: ARG002
        """Filter by what the list offers: any other lookup answers questions about columns that are never shown."""
        return lookup in {"enabled__exact", "enabled__isnull"}

    def get_readonly_fields(
        self,
        request: HttpRequest,  # noqa: ARG002
        obj: UserNotificationChannel | None = None,
    ) -> tuple[str, ...]:
        hints = ("webhook_hint", "token_hint")
        return hints if obj is None else ("user_id", *hints)

    def save_model(
        self,
        request: HttpRequest,  # noqa: ARG002
        obj: UserNotificationChannel,
        form: Any,
        change: bool,  # noqa: ARG002
    ) -> None:
        """Have the store save what the form checked."""
        channels = build_channels()
        channels.save(obj.user_id, **form.changes())
        if obj.pk is None:
            obj.pk = UserNotificationChannel.objects.using(channels.using).get(user_id=obj.user_id, channel=FEISHU).pk

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return super().changeform_view(request, *args, **kwargs)
