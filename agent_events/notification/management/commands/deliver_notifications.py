"""Post notifications that are due to their users' webhooks."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from agent_events.notification.assembly import build_deliverer
from agent_events.notification.conf import notification_settings
from agent_events.notification.deliverer import DeliveryOptions
from outbox.management import OutboxCommand, duration, explain_errors, positive
from outbox.workers import stop_on_signals


class Command(OutboxCommand):
    help = (
        "Post the notifications that are due to their users' Feishu webhooks. Start as many as you like: they share "
        "the records. SIGTERM finishes the requests in hand. An outage of the database is waited out. Exit code: 0 "
        "stopped or, with --once, nothing more is due; 1 an error."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--once", action="store_true", help="end when nothing more is due")
        parser.add_argument(
            "--batch-size", type=positive, default=10, help="requests that go out at the same time (default: 10)"
        )
        parser.add_argument(
            "--poll-interval",
            type=duration,
            default=timedelta(seconds=2),
            help="pause when nothing is due, such as 2s (default) or 1m",
        )

    def handle(self, *, once: bool, batch_size: int, poll_interval: timedelta, **_: Any) -> None:
        with explain_errors(), stop_on_signals() as stop:
            options = DeliveryOptions(batch_size, poll_interval, notification_settings().lease)
            totals = build_deliverer(options).run(stop, once=once)
        self.stdout.write(
            f"sent {totals.sent}, failed {totals.failed}, dead {totals.dead}, skipped {totals.skipped}, "
            f"lost {totals.lost}"
        )
