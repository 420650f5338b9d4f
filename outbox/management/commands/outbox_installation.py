"""Say which installation the outbox tables are of, and give a copy of a database an id of its own."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError

from outbox.conf import outbox_settings
from outbox.management.command import OutboxCommand
from outbox.management.console import table
from outbox.management.reporting import explain_errors, explain_outage, explain_refusal
from outbox.storage.installations import installation_id, renew_installation_id
from outbox.storage.worker_rows import workers_seen
from outbox.workers.build import routes_of


class Command(OutboxCommand):
    help = (
        "Say the installation id of each database that holds outbox tables: records carry it, and consumers take those "
        "of another one for no records of theirs. With --renew, give each database a new one: for a copy, say of "
        "production for staging, before its workers start. Exit code: 0 done, 1 an error, or workers run."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--renew", action="store_true", help="give each database a new id; its workers must not run"
        )

    def handle(self, *, renew: bool, **_: Any) -> None:
        with explain_errors(), explain_refusal(), explain_outage():
            services: dict[str, list[str]] = {}
            for route in routes_of([]):
                services.setdefault(route.database, []).append(route.service)
            if renew:
                _refuse_beside_workers(services)
            ids = {using: (renew_installation_id if renew else installation_id)(using) for using in services}
        rows = [(using, ids[using], ", ".join(named)) for using, named in services.items()]
        self.show(table(("DATABASE", "INSTALLATION", "SERVICES"), rows))


def _refuse_beside_workers(databases: dict[str, list[str]]) -> None:
    """End while a worker runs: it would go on with the id that it read when it started."""
    ttl = timedelta(seconds=outbox_settings().leases.ttl_seconds)
    alive = [
        f"{each.role} of {each.service} ({each.host}:{each.pid})"
        for using in databases
        for each in workers_seen(using, within=ttl)[:10]
    ]
    if alive:
        raise CommandError(f"these workers run, and know the old id: {', '.join(alive)}. Stop them, then renew it")
