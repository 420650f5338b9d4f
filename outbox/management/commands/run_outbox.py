"""Run every relay and consumer in one process tree, for development."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from outbox.coordination.shutdown import stop_on_signals
from outbox.management.command import OutboxCommand
from outbox.management.reporting import explain_errors, refuse_when_disabled
from outbox.workers.build import routes_of
from outbox.workers.supervisor import Supervisor


class Command(OutboxCommand):
    help = (
        "Run the relay and the consumer of the named services, or of all, each as a process of its own under one "
        "supervisor that shows their output and starts again what ends. For development: in production give each "
        "worker a unit of its own. SIGTERM or Ctrl-C ends them all. Exit code: 0 stopped, 1 an error."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("services", nargs="*", metavar="service", help="services to run (default: all)")
        parser.add_argument("--create-topics", action="store_true", help="create missing topics first")

    def handle(self, *, services: list[str], create_topics: bool, **options: Any) -> None:
        with explain_errors(), stop_on_signals() as stop:
            refuse_when_disabled()
            more = ["--create-topics"] if create_topics else []
            more += [f"--settings={options['settings']}"] if options.get("settings") else []
            commands = {}
            for route in routes_of(services):
                for label, command in (("relay", "run_relay"), ("consumer", "consume")):
                    commands[f"{route.service} {label}"] = [
                        sys.executable,
                        sys.argv[0],
                        command,
                        route.service,
                        *more,
                    ]
            Supervisor(commands, out=sys.stdout).run(stop)
