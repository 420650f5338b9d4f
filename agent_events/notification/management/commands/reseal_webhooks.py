"""Encrypt the stored webhooks and tokens under the newest key."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from agent_events.notification.assembly import build_channels
from agent_events.notification.sealing import SealError
from outbox.management import OutboxCommand, explain_errors


class Command(OutboxCommand):
    help = (
        "Encrypt the stored webhooks and bearer tokens under the first key of NOTIFICATION['SECRET_KEYS'] (SECRET_KEY "
        "without). Run it after a key was put in front, before the old one is dropped. It can be run again at any time."
    )

    def handle(self, **_: Any) -> None:
        with explain_errors():
            try:
                channels = build_channels()
                with self.progress("channels", channels.count()) as draw:
                    done = channels.reseal(tell=draw)
            except SealError as error:
                raise CommandError(str(error)) from error
        self.stdout.write(f"resealed {done}")
