"""``settings.NOTIFICATION`` as one frozen object, validated, with defaults."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from django.conf import settings

from outbox.exceptions import ConfigurationError

_Seconds = Annotated[float, msgspec.Meta(gt=0)]


class NotificationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename=str.upper):
    """All of ``settings.NOTIFICATION``."""

    allowed_hosts: tuple[str, ...] = ()
    """Hosts (``host`` or ``host:port``) beside feishu.cn that a webhook may name; these may be http and private."""
    site_url: str = "http://localhost:8000"
    """Where this site is for a user's browser; a notification's link starts with it."""
    timeout_seconds: _Seconds = 5.0
    """The whole of a request: name resolution, connection, TLS, sending, and the answer."""
    lease_seconds: _Seconds = 60.0
    """A record found in ``sending`` for longer is taken up again."""
    ca_file: str = ""
    """CA certificates (PEM) to trust instead of the usual ones."""
    secret_keys: tuple[str, ...] = ()
    """Keys that webhooks are sealed with, the newest first; none: SECRET_KEY and SECRET_KEY_FALLBACKS."""

    def __post_init__(self) -> None:
        if self.lease_seconds < 2 * self.timeout_seconds:
            raise ValueError(
                f"LEASE_SECONDS is {self.lease_seconds:g}; make it at least twice TIMEOUT_SECONDS "
                f"({self.timeout_seconds:g}), or a record is taken up again while its request is on its way"
            )
        parts = urlsplit(self.site_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"SITE_URL is {self.site_url!r}; give it the form https://example.com")

    def __repr__(self) -> str:
        return f"NotificationSettings(site_url={self.site_url!r}, …)"

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.timeout_seconds)

    @property
    def lease(self) -> timedelta:
        return timedelta(seconds=self.lease_seconds)


def notification_settings() -> NotificationSettings:
    """Return the project's settings.

    :raises ConfigurationError: names the key and the value's fault.
    """
    try:
        return msgspec.convert(getattr(settings, "NOTIFICATION", {}), type=NotificationSettings)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"settings.NOTIFICATION: {error}") from error
