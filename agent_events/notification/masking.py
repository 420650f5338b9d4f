"""Keeps secrets out of what people and logs see. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from agent_events.notification.webhooks import PATH_PREFIX, Webhook

MASK: Final = "****"
_SHOWN: Final = 4
_LONG_ENOUGH: Final = 16
"""A secret shorter than this shows nothing of itself."""
_SHORTEST: Final = 4
"""Shorter texts are no secrets, and replacing them would garble everything."""


def mask(secret: str) -> str:
    """Return what may be shown of a secret: its last four characters, so that two can be told apart."""
    return f"{MASK}{secret[-_SHOWN:]}" if len(secret) >= _LONG_ENOUGH else MASK


def mask_webhook(webhook: Webhook) -> str:
    """Return what may be shown of a webhook: where it leads to, not how to use it."""
    return f"{webhook.origin}{PATH_PREFIX}{mask(webhook.secret)}"


class Redactor:
    """Replaces given secrets in texts, in whatever spelling a server may echo them."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        spellings = {
            spelling
            for secret in secrets
            if len(secret) >= _SHORTEST
            for spelling in (secret, quote(secret), quote(secret, safe=""), secret.replace("/", "\\/"))
        }
        # The longest first: a whole address is one mask and not three.
        self._spellings = sorted(spellings, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return ``text`` without the secrets, and without the NUL that a PostgreSQL text cannot hold."""
        for spelling in self._spellings:
            text = text.replace(spelling, MASK)
        return text.replace("\x00", "\ufffd")


def redactor_of(webhook: Webhook, token: str | None) -> Redactor:
    """Return the redactor of what an exchange with ``webhook`` may contain."""
    path = webhook.target.partition("?")[0]
    query = webhook.target.partition("?")[2]
    return Redactor([f"{webhook.origin}{webhook.target}", webhook.target, path, webhook.secret, query, token or ""])
