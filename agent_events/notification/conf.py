"""``settings.NOTIFICATION`` as one frozen object, validated, with defaults."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
from django.conf import settings

from outbox.exceptions import ConfigurationError

_HOST: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class NotificationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename=str.upper):
    """All of ``settings.NOTIFICATION``."""

    allowed_hosts: tuple[str, ...] = ()
    """Hosts (``host`` or ``host:port``) beside feishu.cn that a webhook may name; these may be http and private."""
    site_url: str = "http://localhost:8000"
    """Where this site is for a user's browser; a notification's link starts with it."""
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 5.0
    """The whole of a request: name resolution, connection, TLS, sending, and the answer."""
    lease_seconds: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 60.0
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
        if not _is_site(self.site_url):
            shown = "" if "@" in self.site_url else f" {self.site_url!r}"
            raise ValueError(f"SITE_URL{shown} is no address of a site; give it the form https://example.com")
        for host in self.allowed_hosts:
            if not _HOST.fullmatch(host.strip()):
                raise ValueError(f"ALLOWED_HOSTS has {host!r}; give host or host:port, without scheme, path and user")
        if self.ca_file:
            try:
                with open(self.ca_file, "rb"):
                    pass
            except (OSError, ValueError) as error:
                raise ValueError(f"CA_FILE names a file that cannot be read: {error}; correct it") from error

    def __repr__(self) -> str:
        return f"NotificationSettings(site_url={self.site_url!r}, …)"

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.timeout_seconds)

    @property
    def lease(self) -> timedelta:
        return timedelta(seconds=self.lease_seconds)


def _is_site(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    is_web = parts.scheme in {"http", "https"} and bool(parts.hostname) and port != 0
    return is_web and not (parts.query or parts.fragment or "@" in parts.netloc)


def notification_settings() -> NotificationSettings:
    """Return the project's settings.

    :raises ConfigurationError: names the key and the value's fault.
    """
    try:
        return msgspec.convert(getattr(settings, "NOTIFICATION", {}), type=NotificationSettings)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"settings.NOTIFICATION: {error}") from error
