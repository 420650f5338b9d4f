"""Where users want to be told: the only reader and writer of ``user_notification_channels``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

from django.db import transaction
from django.views.decorators.debug import sensitive_variables

from agent_events.notification.masking import mask, mask_webhook
from agent_events.notification.models import UserNotificationChannel
from agent_events.notification.records import FEISHU
from agent_events.notification.sealing import Sealer
from agent_events.notification.webhooks import check_token, parse_webhook
from outbox.bulk import BulkInsert, ignoring_known
from outbox.fields import UtcNow

_MAKE: Final = BulkInsert(
    table=UserNotificationChannel._meta.db_table,
    columns=("user_id", "channel"),
    on_conflict=ignoring_known("user_id, channel"),
)


@dataclass(frozen=True, slots=True)
class SealedChannel:
    """A user's channel as it is stored."""

    user_id: int
    enabled: bool
    webhook: str | None = field(repr=False)
    token: str | None = field(repr=False)


class ChannelStore:
    """The channels of one database."""

    def __init__(self, using: str, *, sealer: Sealer, allowed_hosts: Collection[str]) -> None:
        self.using = using
        self._sealer = sealer
        self._allowed_hosts = allowed_hosts

    def of_users(self, user_ids: Collection[int]) -> dict[int, SealedChannel]:
        """Return the Feishu channels of the users who have one."""
        found = UserNotificationChannel.objects.using(self.using).filter(channel=FEISHU, user_id__in=user_ids)
        return {
            each.user_id: SealedChannel(each.user_id, each.enabled, each.sealed_webhook, each.sealed_token)
            for each in found
        }

    @sensitive_variables("webhook", "token", "columns")
    def save(
        self, user_id: int, *, webhook: str | None = None, token: str | None = None, enabled: bool | None = None
    ) -> None:
        """Change what is given of a user's channel, which is made when it is missing; None stays as it is.

        An empty ``token`` takes the token away. A new webhook takes it away too, unless the new one's comes along:
        whoever may set an address must not learn a token that way.

        :raises WebhookRefusedError: the address or the token is not allowed; nothing is written.
        """
        columns: dict[str, Any] = {}
        if enabled is not None:
            columns["enabled"] = enabled
        if webhook is not None:
            hint = mask_webhook(parse_webhook(webhook, allowed_hosts=self._allowed_hosts))
            columns |= {"sealed_webhook": self._sealer.seal(webhook), "webhook_hint": hint[:255]}
            token = token or ""
        if token is not None:
            columns |= self._token_columns(token)
        columns["updated_at"] = UtcNow()
        rows = UserNotificationChannel.objects.using(self.using)
        with transaction.atomic(using=self.using):
            _MAKE.run([(user_id, FEISHU)], using=self.using)
            rows.filter(user_id=user_id, channel=FEISHU).update(**columns)

    def count(self) -> int:
        """Return how many channels there are."""
        return UserNotificationChannel.objects.using(self.using).count()

    def reseal(self, tell: Callable[[int], object] = lambda _: None) -> int:
        """Seal everything under the newest key; return how many channels were done.

        ``tell`` hears after each channel how many were looked at.

        :raises SealError: one of them was sealed under a key that is not there.
        """
        rows = UserNotificationChannel.objects.using(self.using)
        done = 0
        for looked_at, each in enumerate(rows.order_by("pk").iterator(), start=1):
            # Guarded: a webhook that is set anew meanwhile is not overwritten.
            done += rows.filter(pk=each.pk, sealed_webhook=each.sealed_webhook, sealed_token=each.sealed_token).update(
                sealed_webhook=self._sealer.reseal(each.sealed_webhook) if each.sealed_webhook else None,
                sealed_token=self._sealer.reseal(each.sealed_token) if each.sealed_token else None,
            )
            tell(looked_at)
        return done

    def _token_columns(self, token: str) -> dict[str, Any]:
        if not token:
            return {"sealed_token": None, "token_hint": ""}
        check_token(token)
        return {"sealed_token": self._sealer.seal(token), "token_hint": mask(token)}
