"""Say how the services are doing."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import timedelta
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from outbox.management.reporting import duration, explain_errors, explain_outage, positive
from outbox.management.status_report import JsonView, call_for_a_person, gather
from outbox.management.status_table import TableView
from outbox.management.status_watch import watch
from outbox.shutdown import stop_on_signals
from outbox.workers import open_broker, routes_of


class Command(BaseCommand):
    help = (
        "Say how the named services, or all, are doing: rows by status (a number with '+' is a lower bound; DEAD are "
        "those that nobody gave up), age of the oldest row that is due, lag of the consumer group, running relays and "
        "consumers with their shards. A broker that is away makes the lag unknown, nothing else. Exit code: 0 done, 1 "
        "an error, 2 with --check: something needs a person."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        check_help = "exit with 2 when events are dead, records rejected, rows foreign, or work is stalled"
        stalled_help = "work is stalled when a row has been due, or sent and not consumed, for longer (default: 5m)"
        watch_help = "show again every so many seconds (default: 2) until SIGINT or SIGTERM"
        parser.add_argument("services", nargs="*", metavar="service", help="services to show (default: all)")
        parser.add_argument("--json", action="store_true", help="print one JSON object (with --watch: one a line)")
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument("--watch", type=positive, nargs="?", const=2, metavar="SECONDS", help=watch_help)
        mode.add_argument("--check", action="store_true", help=check_help)
        parser.add_argument("--stalled-after", type=duration, default="5m", metavar="AGE", help=stalled_help)

    def handle(self, *, services: list[str], stalled_after: timedelta, check: bool, **options: Any) -> None:
        pause_s: int | None = options["watch"]
        view = JsonView(one_line=pause_s is not None) if options["json"] else TableView(dated=pause_s is not None)
        with explain_errors(), stop_on_signals() as stop, open_broker() as broker:
            look = partial(gather, routes_of(services), broker, stalled_after=stalled_after)
            if pause_s is not None:
                pause = timedelta(seconds=pause_s)
                watch(lambda: view.show(look()), view.say_away, self.stdout, stop, pause=pause)
                return
            with explain_outage():
                reports = look()
        self.stdout.write(view.show(reports))
        if check and (call := call_for_a_person(reports)):
            raise CommandError(call, returncode=2)
