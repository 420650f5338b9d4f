"""Run the handlers of services' events."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from outbox.conf import outbox_settings
from outbox.coordination.shutdown import stop_on_signals
from outbox.management.command import OutboxCommand
from outbox.management.reporting import explain_errors, explain_refusal, positive, refuse_when_disabled
from outbox.workers.build import open_broker, routes_of, run_consumers, wait_for_topics
from outbox.workers.interpreter import set_up_for_batches
from outbox.workers.observers import progress_log


class Command(OutboxCommand):
    help = (
        "Run the handlers of the named services' events, each in the transaction that marks its event consumed. Start "
        "as many as you like: they share the partitions. SIGTERM finishes the batch in hand. An outage of broker or "
        "database is waited out. Exit code: 0 stopped or drained, 1 an error."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("services", nargs="+", metavar="service", help="services to consume")
        parser.add_argument("--once", action="store_true", help="end when nothing is left to receive")
        parser.add_argument("--max-events", type=positive, help="end after this many events (of each service)")
        parser.add_argument("--create-topics", action="store_true", help="create missing topics first")

    def handle(self, *, services: list[str], once: bool, max_events: int | None, create_topics: bool, **_: Any) -> None:
        with explain_errors(), explain_refusal(), stop_on_signals() as stop, open_broker() as broker, progress_log():
            refuse_when_disabled()
            routes = routes_of(services)
            timeout = timedelta(seconds=outbox_settings().consumer.topic_timeout_seconds)
            wait_for_topics(routes, broker, stop, create=create_topics, timeout=timeout)
            with set_up_for_batches():
                done = run_consumers(routes, broker, stop, once=once, max_events=max_events)
            for service, totals in done.items():
                self.stdout.write(
                    f"{service}: consumed {totals.consumed}, retried {totals.retried}, waited {totals.waited}, "
                    f"dead {totals.dead}, rejected {totals.rejected}, duplicates {totals.duplicates}"
                )
