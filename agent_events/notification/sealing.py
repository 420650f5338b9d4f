"""Webhook addresses and tokens are encrypted where they are stored: a copy of the database posts to nobody.

Fernet (AES-128-CBC with HMAC-SHA256) under a key made from ``SECRET_KEYS``, by default Django's ``SECRET_KEY``. The
first key seals, every key opens: put a new one in front, run ``manage.py reseal_webhooks``, then drop the old one.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.utils.crypto import salted_hmac

from agent_events.notification.conf import notification_settings

_SALT: Final = "agent_events.notification.sealing"


class SealError(Exception):
    """What is stored was sealed under a key that this process does not have, or was tampered with."""

    def __init__(self) -> None:
        super().__init__(
            "the stored webhook cannot be opened: it was sealed under another key; put that key behind the present one "
            "in NOTIFICATION['SECRET_KEYS'], or set the webhook again"
        )


class Sealer:
    """Seals and opens texts."""

    def __init__(self, keys: Sequence[str | bytes]) -> None:
        self._fernet = MultiFernet([Fernet(_derive(key)) for key in keys])

    def seal(self, text: str) -> str:
        """Return ``text`` encrypted, as text."""
        return self._fernet.encrypt(text.encode()).decode("ascii")

    def open(self, sealed: str) -> str:
        """Return what ``seal`` was given.

        :raises SealError: no key fits.
        """
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except (InvalidToken, UnicodeError):
            raise SealError from None

    def reseal(self, sealed: str) -> str:
        """Return ``sealed`` under the first key.

        :raises SealError: no key fits.
        """
        return self.seal(self.open(sealed))


def configured_sealer() -> Sealer:
    """Return the sealer with the project's keys."""
    own = notification_settings().secret_keys
    return Sealer(own if own else [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS])


def _derive(key: str | bytes) -> bytes:
    return base64.urlsafe_b64encode(salted_hmac(_SALT, "webhooks", secret=key, algorithm="sha256").digest())
