"""Carry outbox rows to their topics."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from outbox.conf import outbox_settings
from outbox.coordination.shutdown import stop_on_signals
from outbox.management.command import OutboxCommand
from outbox.management.reporting import explain_errors, explain_refusal, refuse_when_disabled
from outbox.workers.build import open_broker, routes_of, run_relays, wait_for_topics
from outbox.workers.interpreter import set_up_for_batches
from outbox.workers.observers import progress_log


class Command(OutboxCommand):
    help = (
        "Carry outbox rows to their Kafka topics, for the named services or for all. Start as many as you like: they "
        "share the work, and a crashed one's share is taken over within ten seconds. SIGTERM finishes the batch in "
        "hand. An outage of broker or database is waited out. Exit code: 0 stopped or drained, 1 an error."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("services", nargs="*", metavar="service", help="services to relay (default: all)")
        parser.add_argument("--once", action="store_true", help="end when nothing more is due")
        parser.add_argument("--create-topics", action="store_true", help="create missing topics first")

    def handle(self, *, services: list[str], once: bool, create_topics: bool, **_: Any) -> None:
        with explain_errors(), explain_refusal(), stop_on_signals() as stop, open_broker() as broker, progress_log():
            refuse_when_disabled()
            routes = routes_of(services)
            timeout = timedelta(seconds=outbox_settings().consumer.topic_timeout_seconds)
            wait_for_topics(routes, broker, stop, create=create_topics, timeout=timeout)
            with set_up_for_batches():
                done = run_relays(routes, broker, stop, once=once)
            for service, totals in done.items():
                self.stdout.write(
                    f"{service}: published {totals.published}, dead {totals.dead}, redelivered {totals.redelivered}"
                )
