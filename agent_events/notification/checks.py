"""`manage.py check`: the settings of the `notification` service."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.core import checks
from django.core.checks import CheckMessage, Tags, register

from agent_events.notification.conf import notification_settings
from outbox.exceptions import ConfigurationError

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@register("notification")
def check_settings(**_: Any) -> list[CheckMessage]:
    """Read the settings as the commands do."""
    try:
        notification_settings()
    except ConfigurationError as error:
        return [checks.Error(str(error), hint="See NOTIFICATION in the project's settings.", id="notification.E001")]
    return []


@register(Tags.security, deploy=True)
def check_deployment(**_: Any) -> list[CheckMessage]:
    """Warn of what is meant for a developer's machine."""
    try:
        configured = notification_settings()
    except ConfigurationError:
        return []
    found: list[CheckMessage] = []
    if urlsplit(configured.site_url).hostname in _LOCAL:
        hint = "Set NOTIFICATION_SITE_URL to the address that users open in their browser."
        found.append(checks.Warning("Links in notifications lead to localhost.", hint=hint, id="notification.W001"))
    if configured.allowed_hosts:
        hint = "Leave NOTIFICATION_ALLOWED_HOSTS empty unless these hosts are yours."
        text = "Webhooks may lead to hosts beside feishu.cn, over http and on private addresses."
        found.append(checks.Warning(text, hint=hint, id="notification.W002"))
    return found
