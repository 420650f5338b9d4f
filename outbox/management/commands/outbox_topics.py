"""Check or create the services' topics."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from rich.text import Text

from outbox.brokers.base import TopicState
from outbox.management.command import OutboxCommand
from outbox.management.console import table
from outbox.management.reporting import explain_errors, positive
from outbox.workers.build import open_broker, routes_of


class Command(OutboxCommand):
    help = (
        "Say whether the topics of the named services, or of all, are there and ready; with --create, make those that "
        "are missing. Topics that exist are never changed. Exit code: 0 all are ready, 1 one is missing or not ready, "
        "or an error."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("services", nargs="*", metavar="service", help="services to look at (default: all)")
        parser.add_argument("--create", action="store_true", help="create missing topics and wait for their leaders")
        parser.add_argument(
            "--partitions", type=positive, help="partitions of a created topic (default: OUTBOX['BROKER']['OPTIONS'])"
        )
        parser.add_argument("--replication", type=positive, help="replicas of a created topic (default: likewise)")

    def handle(
        self, *, services: list[str], create: bool, partitions: int | None, replication: int | None, **_: Any
    ) -> None:
        if not create and (partitions or replication):
            raise CommandError("--partitions and --replication say how topics are created: add --create")
        with explain_errors(), open_broker() as broker:
            routes = routes_of(services)
            with self.busy("creating topics" if create else "asking the broker"):
                if create:
                    states = broker.create_topics(routes, partitions=partitions, replication=replication)
                else:
                    states = broker.topics(routes)
        self.show(
            table(
                ("SERVICE", "TOPIC", "PARTITIONS", "STATE"),
                [(route.service, *_cells(state)) for route, state in zip(routes, states, strict=True)],
                right=("PARTITIONS",),
            )
        )
        unready = [state.topic for state in states if not state.exists or state.problem]
        if unready:
            advice = "" if create else "; create missing ones with --create"
            raise CommandError(f"{len(unready)} of {len(states)} topics are not ready: {', '.join(unready)}{advice}")


def _cells(state: TopicState) -> tuple[str, str, Text]:
    is_ready = state.exists and not state.problem
    word = state.problem or ("ready" if is_ready else "missing")
    return state.topic, str(state.partitions) if state.exists else "-", Text(word, "green" if is_ready else "bold red")
