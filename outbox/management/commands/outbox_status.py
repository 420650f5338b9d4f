"""Say how the services are doing."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError

from outbox.coordination.shutdown import stop_on_signals
from outbox.management.command import OutboxCommand
from outbox.management.reporting import duration, explain_errors, positive
from outbox.management.status_report import JsonView, StatusProbe, call_for_a_person, databases_away
from outbox.management.status_table import TableView
from outbox.workers.build import open_broker, routes_of


class Command(OutboxCommand):
    help = (
        "Say how the named services, or all, are doing: rows by status (a number with '+' is a lower bound), age of "
        "the oldest row that is due, lag of the consumer group, running relays and consumers with their shards. What "
        "a database or the broker does not answer in time is shown as '?', and why stands below. Exit code: 0 done, "
        "1 an error, 2 with --check: something needs a person."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        check_help = (
            "exit with 2 when a broker or database does not answer, a service has no relay or no consumer or one that "
            "hangs, events are dead, keys held back by dead events, records rejected, records of another installation "
            "met, rows foreign, or work is stalled"
        )
        stalled_help = "work is stalled when a row has been due, or sent and not consumed, for longer (default: 5m)"
        watch_help = "show again every so many seconds (default: 2) until SIGINT or SIGTERM"
        timeout_help = "how long to wait for databases and broker, all together (default: 1s; at --check, too)"
        parser.add_argument("services", nargs="*", metavar="service", help="services to show (default: all)")
        parser.add_argument("--json", action="store_true", help="print one JSON object (with --watch: one a line)")
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument("--watch", type=positive, nargs="?", const=2, metavar="SECONDS", help=watch_help)
        mode.add_argument("--check", action="store_true", help=check_help)
        parser.add_argument("--stalled-after", type=duration, default="5m", metavar="AGE", help=stalled_help)
        parser.add_argument("--timeout", type=duration, default="1s", metavar="TIME", help=timeout_help)

    def handle(
        self, *, services: list[str], stalled_after: timedelta, timeout: timedelta, check: bool, **options: Any
    ) -> None:
        pause_s: int | None = options["watch"]
        view = JsonView(one_line=pause_s is not None) if options["json"] else TableView(dated=pause_s is not None)
        with explain_errors(), stop_on_signals() as stop:
            with open_broker():
                pass  # nothing connects: wrong settings are said before the broker is said to be away
            probe = StatusProbe(routes_of(services), stalled_after=stalled_after, timeout=timeout)
            if pause_s is not None:
                while not stop.is_set:
                    parts = view.parts(probe.reports())
                    with self.console:  # one write: nothing flickers
                        self.console.clear()
                        self.show(*parts)
                    stop.wait(timedelta(seconds=pause_s))
                return
            with self.busy("asking databases and broker"):
                reports = probe.reports()
        self.show(*view.parts(reports))
        if check and (call := call_for_a_person(reports)):
            raise CommandError(call, returncode=2)
        if away := databases_away(reports):
            raise CommandError(f"database unavailable: {away}")
